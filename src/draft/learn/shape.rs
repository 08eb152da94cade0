//! How a label looks: made by people, or by machines that make new ones.

/// What a label and others like it have in common, as a glob: numbers and what looks random are `*`. `None` where nothing
/// of it is, or where it cannot stand in a glob.
pub(super) fn shape(label: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(label).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) || text.starts_with("xn--")
    {
        return None;
    }
    let mut glob = String::with_capacity(text.len());
    for part in text.split_inclusive(['-', '_']) {
        let word = part.trim_end_matches(['-', '_']);
        match stem(word) {
            Some(stem) => {
                glob.push_str(stem);
                glob.push('*');
            }
            None => glob.push_str(word),
        }
        glob.push_str(part.get(word.len()..).unwrap_or_default());
    }
    glob.contains('*').then_some(glob)
}

/// What stays of a word of which the rest changes; `None` where all of it stays.
fn stem(word: &str) -> Option<&str> {
    let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = letters.len() < word.len();
    match letters.chars().any(|c| c.is_ascii_digit()) {
        // `17`, `shard17`.
        false if numbered && !looks_random(letters) => Some(letters),
        // `shard`.
        false if !numbered && !looks_random(letters) => None,
        // Letters and numbers in turn, or letters that are no word.
        _ => Some(""),
    }
}

/// Whether a word is unlikely to be one that people chose. A guess by the order of its letters; it only asks for more
/// evidence.
pub(super) fn looks_random(word: &str) -> bool {
    let letters: Vec<u8> = word.bytes().filter(|byte| *byte != b'-').collect();
    if letters.len() < 8 {
        return false;
    }
    let vowel = |byte: &u8| matches!(byte, b'a' | b'e' | b'i' | b'o' | b'u' | b'y');
    let consonant = |byte: &u8| byte.is_ascii_alphabetic() && !vowel(byte);
    let (mut run, mut longest, mut turns) = (0, 0, 0);
    for (at, byte) in letters.iter().enumerate() {
        run = if consonant(byte) { run + 1 } else { 0 };
        longest = longest.max(run);
        let before = at.checked_sub(1).and_then(|at| letters.get(at));
        turns += usize::from(before.is_some_and(|before| before.is_ascii_digit() != byte.is_ascii_digit()));
    }
    let vowels = letters.iter().filter(|byte| vowel(byte)).count();
    let alphabetic = letters.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
    longest >= 6 || turns >= 3 || (alphabetic >= 8 && vowels * 6 < alphabetic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_in_a_label_is_a_star() {
        let rows = [
            ("www", None),
            ("api-eu", None),
            ("static", None),
            ("shard17", Some("shard*")),
            ("img-042", Some("img-*")),
            ("r3---sn-4g5e6nsz", Some("r*---sn-*")),
            ("17", Some("*")),
            ("node-ab12cd34", Some("node-*")),
            ("4f2a9c1e77b0", Some("*")),
            ("xkqjzvwptrw", Some("*")),
            ("xn--bcher-kva1", None),
            ("a*b1", None),
            ("v2", Some("v*")),
        ];
        for (label, expected) in rows {
            assert_eq!(shape(label.as_bytes()).as_deref(), expected, "{label}");
        }
        assert_eq!(shape(b"\xff1"), None);
    }

    #[test]
    fn words_are_told_from_noise() {
        for word in
            ["googleapis", "cloudflare", "example-shop", "stackoverflow", "microsoftonline", "nytimes", "w3schools"]
        {
            assert!(!looks_random(word), "{word}");
        }
        for word in ["xkqjzvwptr", "a8f3k2m9q1", "qwrtzpsdfg", "1a2b3c4d5e6f"] {
            assert!(looks_random(word), "{word}");
        }
    }
}
