//! Stacks of layers that are easily merged wrongly.

use super::Make::{self, Device, Dir, Fifo, File as Plain, Hard, Symlink};

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
