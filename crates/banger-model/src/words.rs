//! Names for VMs that nobody named: two words.

/// A name of two words chosen by a random number.
#[must_use]
pub fn two_words(random: u64) -> String {
    let pick = |words: &[&'static str], random: u64| {
        let count = u64::try_from(words.len()).expect("a list of words has a small length");
        words[usize::try_from(random % count).expect("less than a list's length")]
    };
    format!(
        "{}-{}",
        pick(FIRST, random & 0xffff_ffff),
        pick(SECOND, random >> 32)
    )
}

#[rustfmt::skip]
const FIRST: &[&str] = &[
    "able", "agile", "airy", "amber", "ample", "apt", "arch", "azure", "balmy", "bold", "brave",
    "brief", "bright", "brisk", "broad", "bronze", "calm", "candid", "chalk", "cheery", "chief",
    "civil", "clean", "clear", "clever", "cloudy", "coral", "cosy", "crisp", "curly", "cyan",
    "dapper", "daring", "dawn", "deep", "deft", "dense", "dewy", "eager", "early", "earthy",
    "easy", "elder", "elm", "equal", "even", "exact", "fair", "fancy", "fast", "fawn",
    "fertile", "fine", "firm", "fit", "fleet", "fluffy", "fond", "frank", "free", "fresh",
    "frosty", "full", "gentle", "giant", "gifted", "gilded", "glad", "golden", "good", "grand",
    "great", "green", "hale", "handy", "happy", "hardy", "hazel", "hearty", "hidden", "high",
    "honest", "humble", "icy", "ideal", "indigo", "inner", "ivory", "jade", "jolly", "jovial",
    "just", "keen", "kind", "lanky", "large", "late", "lavish", "leafy", "lean", "level",
    "light", "lilac", "lime", "linen", "lively", "lofty", "loyal", "lucid", "lucky", "lunar",
    "magic", "major", "maple", "marble", "mellow", "merry", "mighty", "mild", "mint", "misty",
    "modest", "mossy", "narrow", "native", "neat", "new", "nimble", "noble", "north", "novel",
    "oaken", "ocean", "olive", "onyx", "open", "opal", "orange", "outer", "pale", "patient",
    "pearl", "peppy", "placid", "plain", "plucky", "plum", "polar", "polite", "prime", "proud",
    "pure", "quick", "quiet", "rapid", "rare", "ready", "regal", "rich", "ripe", "robust",
    "rosy", "round", "royal", "ruby", "rugged", "rustic", "sage", "sandy", "scarlet", "serene",
    "sharp", "shiny", "silent", "silver", "simple", "sleek", "slim", "smart", "smooth", "snowy",
    "snug", "soft", "solar", "solid", "sound", "south", "spare", "spicy", "spry", "stable",
    "steady", "still", "stout", "strong", "sturdy", "sunny", "superb", "sure", "swift", "tall",
    "tame", "tangy", "teal", "tender", "tidy", "tiny", "topaz", "tough", "tranquil", "true",
    "upbeat", "urban", "valid", "vast", "velvet", "vivid", "warm", "wavy", "west", "wide",
    "wild", "windy", "wise", "witty", "woody", "young", "zesty",
];

#[rustfmt::skip]
const SECOND: &[&str] = &[
    "acorn", "alder", "anchor", "antler", "apple", "arrow", "aspen", "atlas", "badger",
    "bamboo", "barley", "basil", "bay", "beacon", "beaver", "beech", "bell", "berry", "birch",
    "bison", "bloom", "boulder", "branch", "brook", "bud", "bugle", "canary", "canoe", "canyon",
    "cedar", "cherry", "cliff", "clover", "cobalt", "comet", "condor", "copper", "coral",
    "cove", "crane", "creek", "crest", "cricket", "crow", "crystal", "cypress", "daisy", "deer",
    "delta", "dove", "dune", "eagle", "ember", "falcon", "fern", "ferry", "field", "finch",
    "fjord", "flame", "flint", "forest", "fox", "garden", "garnet", "gecko", "geyser", "ginger",
    "glacier", "glade", "goose", "gorge", "granite", "grove", "gull", "harbor", "hare", "harp",
    "hawk", "hazel", "heath", "hedge", "heron", "hill", "hive", "holly", "honey", "horizon",
    "ibis", "inlet", "iris", "island", "ivy", "jasmine", "jay", "juniper", "kelp", "kestrel",
    "kite", "koala", "lagoon", "lake", "lantern", "larch", "lark", "laurel", "lava", "leaf",
    "lemon", "lily", "linden", "lion", "llama", "lotus", "lynx", "magnet", "magpie", "mango",
    "maple", "marlin", "marsh", "meadow", "melon", "mesa", "meteor", "minnow", "mist", "moon",
    "moose", "moss", "moth", "mountain", "mulberry", "nectar", "nest", "newt", "nutmeg", "oak",
    "oasis", "ocean", "olive", "onyx", "orchard", "orchid", "oriole", "osprey", "otter", "owl",
    "palm", "panda", "panther", "peach", "peak", "pear", "pebble", "pelican", "pepper",
    "petrel", "pier", "pine", "plain", "planet", "plover", "plum", "pond", "poplar", "poppy",
    "prairie", "puffin", "quail", "quarry", "quartz", "quill", "rabbit", "rain", "rapids",
    "raven", "reed", "reef", "ridge", "river", "robin", "rocket", "rose", "saffron", "sail",
    "salmon", "sand", "sapling", "seal", "shell", "shore", "sky", "slate", "sloop", "snow",
    "sparrow", "spring", "spruce", "squid", "star", "stone", "stork", "storm", "stream",
    "summit", "sun", "swan", "teal", "temple", "thicket", "thistle", "thorn", "thrush", "thyme",
    "tiger", "timber", "toucan", "trail", "trout", "tulip", "tundra", "turtle", "valley",
    "violet", "walnut", "walrus", "wave", "whale", "willow", "wind", "wolf", "wombat", "wren",
    "yarrow", "yew", "zebra", "zephyr",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_words_is_a_vm_name() {
        for (first, second) in FIRST
            .iter()
            .flat_map(|f| SECOND.iter().map(move |s| (f, s)))
        {
            assert!(
                crate::VmName::parse(&format!("{first}-{second}")).is_ok(),
                "{first} {second}"
            );
        }
        assert!(FIRST.len() >= 200 && SECOND.len() >= 200);
    }

    #[test]
    fn no_word_is_in_a_list_twice() {
        for list in [FIRST, SECOND] {
            let mut words = list.to_vec();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), list.len());
        }
    }
}
