//! The ground the other tests stand on: made here first, checked once.

use e2e::{Kernel, Root, disk, fixture};

#[test]
fn roots_without_systemd_are_sound() {
    for root in [Root::Bare, Root::Busybox, Root::Openrc] {
        disk::assert_clean(&fixture::root(root));
    }
}

#[test]
fn kernel_packages_come_from_debian() {
    for kernel in Kernel::ALL {
        let deb = fixture::kernel_deb(kernel);
        let name = deb
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        assert!(
            name.starts_with(&format!("linux-image-{}", kernel.version())),
            "{name}"
        );
    }
}

#[test]
fn images_built_from_suites_are_sound() {
    for root in [Root::Bookworm, Root::Trixie] {
        disk::assert_clean(&fixture::root(root));
    }
}

#[test]
fn a_root_with_foreign_package_managers_is_sound() {
    disk::assert_clean(&fixture::packagers_root());
}
