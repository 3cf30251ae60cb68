//! What a stream means: a record in a stream of its own, `$about/<stream>`, which travels as any other (specs/log.md §2.3).

use crate::cbor::{MAP, Malformed, Reader, put_head, put_text};
use crate::error::LogError;
use crate::event::NewEvent;
use crate::feed::OrderKey;
use crate::log::Log;
use crate::stream::{NameError, StreamName};
use crate::writer::Appended;

/// First level of streams that describe others.
pub const ABOUT: &str = "$about";
/// Most bytes of each text of a description.
const MAX_TEXT: usize = 4096;

/// How events of a stream are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Acknowledged when they are on disk; never dropped.
    #[default]
    Durable,
    /// Taken into memory, written with the next write, dropped under overload and counted.
    Fast,
}

/// What a stream means, for people and programs that come later. Texts of at most 4 KiB; empty is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// What it tells, in words.
    pub meaning: String,
    /// The unit of its values, like `pieces`.
    pub unit: String,
    /// Where its schema is: a CID or a link.
    pub schema: String,
    /// How its events are kept.
    pub class: Class,
}

/// Why a stream was not described.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescribeError {
    /// The stream cannot be described: it is a description itself, perhaps.
    #[error("the stream cannot be described: {0}")]
    Name(#[from] NameError),
    /// A text is too long.
    #[error("a text of a description has {0} bytes and may have 4096")]
    TooLong(usize),
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Description {
    fn fields(&self) -> [(&'static str, &str); 4] {
        let class = match self.class {
            Class::Durable => "",
            Class::Fast => "fast",
        };
        [
            ("unit", &self.unit),
            ("class", class),
            ("schema", &self.schema),
            ("meaning", &self.meaning),
        ]
    }

    /// As canonical dag-cbor.
    ///
    /// # Errors
    /// [`DescribeError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, DescribeError> {
        let fields = self.fields();
        if let Some((_, long)) = fields.iter().find(|(_, text)| text.len() > MAX_TEXT) {
            return Err(DescribeError::TooLong(long.len()));
        }
        let there = fields.iter().filter(|(_, text)| !text.is_empty());
        let mut out = Vec::new();
        put_head(&mut out, MAP, there.clone().count() as u64);
        for (key, text) in there {
            put_text(&mut out, key);
            put_text(&mut out, text);
        }
        Ok(out)
    }

    /// From canonical dag-cbor. Keys that are not known are passed over, so that later versions may say more.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut read = Self::default();
        for _ in 0..reader.map()? {
            let key = reader.text()?;
            let text = reader.text()?;
            if text.len() > MAX_TEXT {
                return reader.fail("a text of more than 4096 bytes");
            }
            match key {
                "unit" => text.clone_into(&mut read.unit),
                "schema" => text.clone_into(&mut read.schema),
                "meaning" => text.clone_into(&mut read.meaning),
                "class" if text == "fast" => read.class = Class::Fast,
                _ => {}
            }
        }
        if reader.is_done() {
            Ok(read)
        } else {
            reader.fail("bytes behind the description")
        }
    }
}

impl Log {
    /// Says what a stream means. The last description in the order of all nodes counts.
    ///
    /// # Errors
    /// See [`DescribeError`].
    pub fn describe(
        &self,
        stream: &StreamName,
        time: i64,
        description: &Description,
    ) -> Result<Appended, DescribeError> {
        let about = stream.below(ABOUT)?;
        let event = NewEvent::new(time, description.encode()?);
        Ok(self.append(&about, &[event])?)
    }

    /// What a stream means, as far as anybody said so here. Of each author the last description counts, and of these the last in the order.
    ///
    /// # Errors
    /// What the disk answers; descriptions that cannot be read are passed over.
    pub fn description(&self, stream: &StreamName) -> Result<Option<Description>, LogError> {
        let Ok(about) = stream.below(ABOUT) else {
            return Ok(None);
        };
        let mut last: Option<(OrderKey, Description)> = None;
        let heads = self.heads();
        for head in heads
            .iter()
            .filter(|head| head.feed.stream == about && head.branch.is_none())
        {
            let mut cursor = self.cursor(&head.feed, head.next.saturating_sub(1));
            let batch = match cursor.next_batch() {
                Ok(Some(batch)) => batch,
                Err(e @ LogError::Io(_)) => return Err(e),
                _ => continue,
            };
            let Some(event) = batch.events().last() else {
                continue;
            };
            let order = batch.order(event.seq);
            if let Ok(read) = Description::decode(event.payload)
                && last.as_ref().is_none_or(|(known, _)| *known < order)
            {
                last = Some((order, read));
            }
        }
        Ok(last.map(|(_, description)| description))
    }
}
