//! Writing version 1.

use std::collections::HashSet;
use std::io::Write;

use cid::Cid;
use gemba_block::Block;

use super::header;

/// Whether a block that occurs several times in a DAG is written once or each time (trustless gateway: `dups`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dups {
    /// Each block once: what `ipfs dag export` does. Remembers about 110 bytes a block.
    #[default]
    Skip,
    /// As often as it occurs.
    Keep,
}

/// Writes an archive of version 1, block by block.
pub struct CarWriter<W> {
    output: W,
    written: Option<HashSet<Cid>>,
}

impl<W: Write> CarWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(mut output: W, roots: &[Cid], dups: Dups) -> std::io::Result<Self> {
        let header = header::encode(roots);
        write_length(&mut output, header.len())?;
        output.write_all(&header)?;
        Ok(CarWriter {
            output,
            written: (dups == Dups::Skip).then(HashSet::new),
        })
    }

    /// Writes a block, unless it was written before and duplicates are skipped. Blocks of identity CIDs are left out:
    /// their content is in the link, as go-car does.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write(&mut self, block: &Block) -> std::io::Result<()> {
        let cid = block.cid();
        if cid.hash().code() == 0 {
            return Ok(());
        }
        if let Some(written) = &mut self.written
            && !written.insert(*cid)
        {
            return Ok(());
        }
        let name = cid.to_bytes();
        write_length(&mut self.output, name.len() + block.data().len())?;
        self.output.write_all(&name)?;
        self.output.write_all(block.data())
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

fn write_length(output: &mut impl Write, length: usize) -> std::io::Result<()> {
    let mut buffer = unsigned_varint::encode::usize_buffer();
    output.write_all(unsigned_varint::encode::usize(length, &mut buffer))
}
