//! As much of DNS messages (RFC 1035, 4.1) as passing them on takes.

/// Length of a header: number, flags, and how many of each section follow.
const HEADER: usize = 12;
/// In the third byte: this is an answer.
const ANSWER: u8 = 0x80;
/// In the third byte: which kind of question, and that recursion is wanted.
const ASKED: u8 = 0x79;
/// In the fourth byte: recursion is to be had.
const RECURSION: u8 = 0x80;
/// Codes in the fourth byte.
const CODE: u8 = 0x0f;
const SERVER_FAILURE: u8 = 2;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;
/// Longest name, with the lengths of its labels.
const MAX_NAME: usize = 255;
/// Type and class behind a name.
const TYPE_AND_CLASS: usize = 4;

/// Whether this may be a question.
pub(super) fn is_question(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & ANSWER == 0
}

/// Whether this is an answer to that question.
pub(super) fn is_answer(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= HEADER && answer[..2] == question[..2] && answer[2] & ANSWER != 0
}

/// Whether another resolver might know more, as the C library sees it.
pub(super) fn is_refusal(answer: &[u8]) -> bool {
    matches!(answer[3] & CODE, SERVER_FAILURE | NOT_IMPLEMENTED | REFUSED)
}

/// What a resolver says that cannot find out. It repeats the question where
/// that can be read.
pub(super) fn failure(question: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; HEADER];
    answer[..2].copy_from_slice(&question[..2]);
    answer[2] = ANSWER | question[2] & ASKED;
    answer[3] = RECURSION | SERVER_FAILURE;
    if let Some(section) = question_section(question) {
        answer[5] = 1;
        answer.extend_from_slice(section);
    }
    answer
}

/// The question section, if it has exactly one question.
fn question_section(message: &[u8]) -> Option<&[u8]> {
    if message[4..6] != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        // Two bits of it would point elsewhere; in a question nothing does.
        if length > 63 {
            return None;
        }
        at += 1 + length;
        if length == 0 {
            break;
        }
        if at - HEADER >= MAX_NAME {
            return None;
        }
    }
    message.get(HEADER..at + TYPE_AND_CLASS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x04test\x07example\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\0";

    #[test]
    fn a_failure_repeats_the_question() {
        assert!(is_question(QUESTION));
        let answer = failure(QUESTION);
        assert_eq!(answer[..12], *b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\0");
        assert_eq!(answer[12..], *b"\x04test\x07example\0\0\x01\0\x01");
        assert!(is_answer(&answer, QUESTION));
        assert!(is_refusal(&answer));
        assert!(!is_question(&answer));
    }

    #[test]
    fn answers_to_other_questions_are_none() {
        let answer = failure(QUESTION);
        let mut other = answer.clone();
        other[1] ^= 1;
        assert!(!is_answer(&other, QUESTION));
        assert!(!is_answer(QUESTION, QUESTION), "a question is no answer");
        assert!(!is_answer(&answer[..11], QUESTION));
    }

    #[test]
    fn what_helps_is_no_refusal() {
        let mut answer = failure(QUESTION);
        for (code, refusal) in [(0, false), (2, true), (3, false), (4, true), (5, true)] {
            answer[3] = 0x80 | code;
            assert_eq!(is_refusal(&answer), refusal, "code {code}");
        }
    }

    #[test]
    fn a_question_that_cannot_be_read_is_not_repeated() {
        for cut in 12..28 {
            let mut short = QUESTION[..cut].to_vec();
            assert_eq!(failure(&short).len(), HEADER, "cut at {cut}");
            short[5] = 2;
            assert_eq!(failure(&short)[5], 0);
        }
        let pointer = b"\0\0\0\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01";
        assert_eq!(failure(pointer).len(), HEADER);
        let endless = [&QUESTION[..12], &[1; 1000]].concat();
        assert_eq!(failure(&endless).len(), HEADER);
    }

    proptest! {
        #[test]
        fn any_question_can_be_failed(message in proptest::collection::vec(any::<u8>(), 12..300)) {
            prop_assume!(is_question(&message));
            prop_assert!(is_answer(&failure(&message), &message));
        }
    }
}
