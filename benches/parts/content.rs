//! What pages hold: the same in every run.

use slackwater::page::{Gfn, PAGE_SIZE, PageBytes};

/// Kinds of content.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// Phrases of a dictionary of 1,024, as the built-in guest's `text`.
    Text,
    /// Text of which 8 words of 8 bytes were changed for others of the dictionary again and again,
    /// and a sum at the end.
    Words,
    Random,
    Zero,
}

impl Content {
    pub(crate) const ALL: [Self; 4] = [Self::Text, Self::Words, Self::Random, Self::Zero];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Words => "words",
            Self::Random => "random",
            Self::Zero => "zero",
        }
    }
}

/// Random numbers by splitmix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("a number below a usize")
    }
}

/// Makes pages.
#[derive(Debug)]
pub(crate) struct Pages {
    phrases: Vec<[u8; 32]>,
    random: Random,
}

impl Pages {
    pub(crate) fn new() -> Self {
        let mut random = Random(1);
        let words = ["page", "epoch", "slack", "water", "ring", "dirty", "commit", "frame", "guest", "tide", "harvest", "reset"];
        let phrase = |random: &mut Random| {
            let mut text = String::new();
            while text.len() < 32 {
                text.push_str(words.get(random.below(words.len())).copied().unwrap_or_default());
                text.push_str(&format!(" {:x} ", random.below(4096)));
            }
            let mut phrase = [0; 32];
            phrase.copy_from_slice(text.as_bytes().get(..32).unwrap_or_default());
            phrase
        };
        let phrases = (0..1024).map(|_| phrase(&mut random)).collect();
        Self { phrases, random }
    }

    pub(crate) fn page(&mut self, content: Content) -> Box<PageBytes> {
        let mut page = Box::new([0; PAGE_SIZE]);
        match content {
            Content::Text | Content::Words => {
                for place in page.chunks_exact_mut(32) {
                    let phrase = self.random.below(self.phrases.len());
                    place.copy_from_slice(self.phrases.get(phrase).expect("a phrase"));
                }
                if matches!(content, Content::Words) {
                    (0..100).for_each(|_| self.change_words(&mut page));
                }
            }
            Content::Random => {
                for place in page.chunks_exact_mut(8) {
                    place.copy_from_slice(&self.random.next().to_le_bytes());
                }
            }
            Content::Zero => {}
        }
        page
    }

    /// Changes 8 words of 8 bytes for others of the dictionary, and the page's last word, as for a
    /// sum.
    pub(crate) fn change_words(&mut self, page: &mut PageBytes) {
        let (words, _) = page.as_chunks_mut::<8>();
        for _ in 0..8 {
            let (phrase, word) = (self.random.below(self.phrases.len()), self.random.below(4));
            let new = self.phrases.get(phrase).and_then(|phrase| phrase.as_chunks().0.get(word)).copied();
            let at = self.random.below(words.len());
            words[at] = new.expect("a word");
        }
        words[PAGE_SIZE / 8 - 1] = self.random.next().to_le_bytes();
    }

    pub(crate) fn pages(&mut self, content: Content, count: usize) -> Vec<Box<PageBytes>> {
        (0..count).map(|_| self.page(content)).collect()
    }
}

/// Pages with their frames, one behind the other, as blocks take them.
pub(crate) fn block(pages: &[Box<PageBytes>]) -> Vec<(Gfn, &PageBytes)> {
    (0..).map(Gfn).zip(pages.iter().map(Box::as_ref)).collect()
}
