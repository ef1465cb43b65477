//! Stacks of layers that are easily merged wrongly.

use super::Make::{self, Device, Dir, Fifo, File as Plain, Hard, Symlink};
use super::{Entry, end};

/// A root that both give: umoci leaves that of the host's umask where no layer names it.
pub(crate) fn with_root(mut layers: Vec<Vec<Make>>) -> Vec<Vec<Make>> {
    layers[0].insert(0, Dir("./", 0o755));
    layers
}

pub(crate) fn stacks() -> Vec<(&'static str, Vec<Vec<Make>>)> {
    vec![
        (
            "whiteouts of a file, a directory, and nothing",
            vec![
                vec![
                    Plain("a", "a"),
                    Dir("d", 0o711),
                    Plain("d/x", "x"),
                    Plain("e", "e"),
                ],
                vec![
                    Plain(".wh.a", ""),
                    Plain(".wh.d", ""),
                    Plain(".wh.none", ""),
                ],
            ],
        ),
        (
            "an opaque directory before and after its new children",
            vec![
                vec![
                    Dir("d", 0o755),
                    Plain("d/old", "1"),
                    Dir("e", 0o755),
                    Plain("e/old", "2"),
                ],
                vec![
                    Dir("d", 0o700),
                    Plain("d/.wh..wh..opq", ""),
                    Plain("d/new", "3"),
                    Plain("e/new", "4"),
                    Plain("e/.wh..wh..opq", ""),
                ],
            ],
        ),
        (
            "a whiteout after and before what the same layer puts there",
            vec![
                vec![
                    Plain("a", "old"),
                    Plain("b", "old"),
                    Dir("d", 0o750),
                    Plain("d/old", ""),
                ],
                vec![
                    Plain("a", "new"),
                    Plain(".wh.a", ""),
                    Plain(".wh.b", ""),
                    Plain("b", "new"),
                    Dir("d", 0o705),
                    Plain("d/new", ""),
                    Plain(".wh.d", ""),
                ],
            ],
        ),
        (
            "a deep way to something new stays when all above is taken away",
            vec![
                vec![
                    Dir("a", 0o755),
                    Dir("a/b", 0o751),
                    Dir("a/c", 0o755),
                    Plain("a/b/old", ""),
                ],
                vec![
                    Plain("a/b/new", "n"),
                    Plain(".wh.a", ""),
                    Plain("a/.wh..wh..opq", ""),
                ],
            ],
        ),
        (
            "hard links across layers and to names that go",
            vec![
                vec![Plain("one", "1"), Plain("two", "2")],
                vec![
                    Hard("link", "one"),
                    Hard("second", "two"),
                    Plain(".wh.one", ""),
                ],
                vec![
                    Plain("two", "replaced"),
                    Hard("third", "second"),
                    Plain(".wh.link", ""),
                ],
            ],
        ),
        (
            "a hard link of this layer to an older file outlives its opaque directory",
            vec![
                vec![Plain("one", "1"), Dir("d", 0o755), Plain("d/old", "")],
                vec![Hard("d/kept", "one"), Plain("d/.wh..wh..opq", "")],
            ],
        ),
        (
            "kinds that change",
            vec![
                vec![
                    Plain("f", "f"),
                    Dir("d", 0o755),
                    Plain("d/x", ""),
                    Symlink("l", "d"),
                ],
                vec![
                    Dir("f", 0o700),
                    Plain("f/x", "x"),
                    Symlink("d", "f"),
                    Dir("l", 0o755),
                ],
                vec![Plain("f", "again"), Device("d"), Fifo("l")],
            ],
        ),
        (
            "parents that are links, absolute and upwards",
            vec![
                vec![
                    Dir("usr/lib", 0o755),
                    Symlink("lib", "usr/lib"),
                    Symlink("abs", "/usr"),
                    Symlink("up", "../../../usr"),
                    Plain("usr/lib/old", ""),
                ],
                vec![
                    Plain("lib/a", "a"),
                    Plain("abs/b", "b"),
                    Plain("up/lib/c", "c"),
                    Plain("lib/.wh.old", ""),
                ],
            ],
        ),
        (
            "odd names, set-id, empty layers, no parents",
            vec![
                vec![Plain("deep/er/file", "x"), Plain("na me\n\u{1F980}", "y")],
                vec![],
                vec![
                    Dir("deep", 0o1777),
                    Plain("/absolute", ""),
                    Plain("./dot", ""),
                ],
            ],
        ),
    ]
}

/// Layers of entries, the first of which names the root: umoci leaves it to the host's umask
/// otherwise.
pub(crate) fn stack(layers: Vec<Vec<Entry>>) -> Vec<Vec<u8>> {
    let bytes = |(number, entries): (usize, Vec<Entry>)| {
        let root = (number == 0).then(|| Entry::dir("./"));
        let all = root.iter().chain(&entries);
        end(all.flat_map(Entry::bytes).collect())
    };
    layers.into_iter().enumerate().map(bytes).collect()
}

/// An access list as the kernel takes it: tag, permissions, and the id where it has one.
fn acl(entries: &[(u16, u16, Option<u32>)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.unwrap_or(u32::MAX).to_le_bytes());
    }
    out
}

pub(crate) const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const NAMED_GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// Permissions, owners and attributes.
pub(crate) fn permissions() -> Vec<Vec<u8>> {
    // cap_net_bind_service=ep, version 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stack(vec![
        vec![
            Entry::file("setuid", "x").mode(0o4755),
            Entry::file("setgid", "x").mode(0o2711).owner(3, 7),
            Entry::file("both", "x").mode(0o6777).owner(1_000_000, 2),
            Entry::file("nothing", "x").mode(0),
            Entry::dir("sticky").mode(0o1777),
            Entry::dir("inherits").mode(0o2775).owner(0, 50),
            Entry::dir("closed").mode(0).owner(4_294_967_294, 70_000),
            Entry::file("closed/below", "x").owner(2_097_152, 4_294_967_294),
            Entry::file("inherits/below", "x").owner(5, 6),
            Entry::file("ping", "x")
                .mode(0o755)
                .attribute("security.capability", capability),
            Entry::file("many", "x")
                .attribute("user.a", "1")
                .attribute("user.zeros", [0, 1, 0, 255])
                .attribute("trusted.overlay.nothing", "y")
                .attribute("security.strange", "z"),
            Entry::file("empty", "x").attribute("user.empty", ""),
            Entry::file("large", "x").attribute("user.large", vec![b'l'; 3900]),
            Entry::file("long", "x").attribute(&format!("user.{}", "n".repeat(250)), "x"),
            Entry::dir("marked").attribute("user.of.directory", "d"),
            Entry::link("link", b'2', "many").attribute("trusted.of.link", "l"),
            Entry::node("pipe", b'6', 0, 0).attribute("trusted.of.pipe", "p"),
            Entry::file("loses", "x").attribute("user.first", "1"),
            Entry::file("gains", "x"),
            Entry::dir("changes")
                .attribute("user.first", "1")
                .mode(0o700),
            Entry::file("changes/stays", "x"),
        ],
        vec![
            Entry::file("loses", "x"),
            Entry::file("gains", "x").attribute("user.second", "2"),
            Entry::dir("changes")
                .attribute("user.second", "2")
                .owner(8, 9),
            Entry::link("hard", b'1', "ping"),
        ],
    ])
}

/// Devices and pipes.
pub(crate) fn devices() -> Vec<Vec<u8>> {
    stack(vec![vec![
        Entry::node("null", b'3', 1, 3).mode(0o666),
        Entry::node("disk", b'4', 8, 17).mode(0o660).owner(0, 6),
        Entry::node("edge", b'3', 255, 255),
        Entry::node("far", b'3', 256, 256).at(1, 1),
        Entry::node("last", b'4', 4095, 1_048_575),
        Entry::node("none", b'3', 0, 0),
        Entry::node("pipe", b'6', 0, 0).mode(0o620).owner(1, 5),
        Entry::link("pipe-again", b'1', "pipe"),
        Entry::link("link", b'2', "pipe").owner(3, 4).at(77, 5),
        Entry::link("link-again", b'1', "link"),
    ]])
}

/// An access list with every kind of entry.
pub(crate) fn full_list() -> Vec<u8> {
    acl(&[
        (OWNER, 6, None),
        (USER, 4, Some(1000)),
        (USER, 7, Some(4_294_967_294)),
        (GROUP, 4, None),
        (NAMED_GROUP, 2, Some(50)),
        (MASK, 6, None),
        (OTHER, 4, None),
    ])
}

/// Access lists, and those that others would inherit.
pub(crate) fn access_lists() -> Vec<Vec<u8>> {
    let full = full_list();
    let plain = acl(&[(OWNER, 7, None), (GROUP, 5, None), (OTHER, 0, None)]);
    stack(vec![
        vec![
            Entry::file("file", "x")
                .mode(0o664)
                .attribute(ACCESS, &full),
            Entry::dir("access").mode(0o664).attribute(ACCESS, &full),
            Entry::dir("default").attribute(DEFAULT, &full),
            Entry::dir("both")
                .mode(0o2664)
                .attribute(ACCESS, &full)
                .attribute(DEFAULT, &plain)
                .attribute("user.more", "m"),
            Entry::file("loses", "x")
                .mode(0o664)
                .attribute(ACCESS, &full),
        ],
        vec![
            // Nothing is inherited: what an image says of a file is all that it has.
            Entry::file("default/below", "x").mode(0o600),
            Entry::dir("default/dir").mode(0o700),
            Entry::file("loses", "x").mode(0o600),
        ],
    ])
}
