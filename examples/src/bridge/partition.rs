//! A sink as a partition of Kafka is one for a producer with idempotence: append-only, flushed, and it knows which records it has. It stands for the real one,
//! which needs a server.

use super::names::name_of;
use gemba_log::{Seq, consume::Delivery};
use std::{
    collections::HashMap,
    error::Error,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

/// A file with a line a record: the name of the event, a space, the payload.
pub(crate) struct Partition {
    file: File,
    /// Of each feed the place behind the last record: all that idempotence needs, since the records of a feed come in order.
    next: HashMap<String, Seq>,
}

impl Partition {
    /// Opens it; a record that a kill left half is cut off.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        let mut partition = Self {
            file,
            next: HashMap::new(),
        };
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            let name = line.split(' ').next().unwrap_or_default();
            if let Some((feed, seq)) = name.rsplit_once(':') {
                let seq: Seq = seq.parse().unwrap_or(0);
                partition.next.insert(feed.to_owned(), seq + 1);
            }
        }
        Ok(partition)
    }

    /// Appends what it does not have yet; it is durable then. After an error nobody knows what the file has: it has to be opened again.
    pub(crate) fn write(
        &mut self,
        events: &[Delivery],
    ) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let mut lines = Vec::new();
        for delivery in events {
            let name = name_of(delivery);
            let (feed, _) = name.rsplit_once(':').ok_or("a name has four parts")?;
            let (next, seq) = (
                self.next.entry(feed.to_owned()).or_default(),
                delivery.id.seq,
            );
            if seq >= *next {
                *next = seq + 1;
                let text = String::from_utf8_lossy(&delivery.event.payload);
                writeln!(lines, "{name} {}", text.escape_debug())?;
            }
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        Ok(true)
    }
}
