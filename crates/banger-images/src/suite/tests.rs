use super::mmdebstrap::needed_bytes;
use super::*;
use crate::tree::{Meta, Tree};

#[test]
fn apt_says_how_much_it_needs() {
    assert_eq!(
        needed_bytes("Need to get 34.2 MB of archives."),
        Some(34_200_000)
    );
    assert_eq!(
        needed_bytes("Need to get 512 B/34.2 kB of archives."),
        Some(34_200)
    );
    assert_eq!(
        needed_bytes("Need to get 1,234 kB of archives."),
        Some(1_234_000)
    );
    assert_eq!(needed_bytes("Get:1 http://x"), None);
}

#[test]
fn only_installed_packages_count() {
    let status = "Package: b\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n\nPackage: c\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n";
    let lines: Vec<String> = package_list(status)
        .into_iter()
        .map(|package| package.line)
        .collect();
    assert_eq!(lines, ["a:amd64=1", "b:all=2"]);
}

#[test]
fn names_that_are_options_are_refused() {
    let spec = |suite: &str, package: &str| SuiteSpec {
        suite: suite.to_owned(),
        packages: vec![package.to_owned()],
        size_bytes: None,
        sync: false,
    };
    assert!(check_names(&spec("bookworm", "jq")).is_ok());
    assert!(check_names(&spec("--x", "jq")).is_err());
    assert!(check_names(&spec("bookworm", "a,b")).is_err());
    assert!(check_names(&spec("bookworm", "?x")).is_err());
}

#[test]
fn nothing_of_the_host_stays_in_the_image() {
    const OF_THE_HOST: [&str; 5] = [
        "etc/hostname",
        "etc/resolv.conf",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "var/lib/apt/lists/x_InRelease",
        "var/cache/apt/pkgcache.bin",
    ];
    let mut tree = Tree::new();
    for path in OF_THE_HOST {
        tree.write_file(path, Meta::root(0o644, 0), b"host")
            .unwrap();
    }
    let entry = Entry {
        uri: "https://me:secret@mirror.example/debian".to_owned(),
        suite: "bookworm".to_owned(),
        components: vec!["main".to_owned()],
        signed_by: Some("/home/me/key.gpg".to_owned()),
        trusted: false,
    };
    finish(&mut tree, &[entry], &[]).unwrap();
    for path in OF_THE_HOST {
        assert!(tree.find(path).is_none(), "{path}");
    }
    let list = tree
        .read("etc/apt/sources.list", &[], 1 << 16)
        .unwrap()
        .unwrap();
    assert_eq!(
        String::from_utf8(list).unwrap(),
        "deb https://mirror.example/debian/ bookworm main\n"
    );
    assert_eq!(
        tree.read("etc/machine-id", &[], 10).unwrap(),
        Some(Vec::new())
    );
}
