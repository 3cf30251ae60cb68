//! What was counted. Every drop that the exchange decides has a line here.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A snapshot of all counters since start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Name and value of each counter, for an exporter.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Messages received.
    messages_in,
    /// Messages handed to connections.
    messages_out,
    /// Bytes of messages received.
    bytes_in,
    /// Bytes of messages written.
    bytes_out,
    /// Blocks received, wanted or not.
    blocks_in,
    /// Blocks written.
    blocks_out,
    /// Bytes of blocks received.
    block_bytes_in,
    /// Bytes of blocks written.
    block_bytes_out,
    /// Blocks that a session had wanted and got.
    found,
    /// Blocks that came again after they were found or cancelled.
    duplicates,
    /// Bytes of those.
    duplicate_bytes,
    /// Blocks that nobody here had asked for, dropped.
    unwanted,
    /// Of those: sent by a peer that owed us other blocks, which is what wrong bytes look like.
    wrong_bytes,
    /// Messages that could not be decoded; their stream was reset.
    malformed,
    /// Messages that were not complete in time; their stream was reset.
    slow_messages,
    /// Entries with CIDs that are not served.
    ignored_entries,
    /// Peers that are not asked any more for a while.
    distrusted,
    /// Wants for a block that a peer did not answer in time.
    timeouts,
    /// Wants for a presence that a peer did not answer in time.
    have_timeouts,
    /// Wants that went to another peer after a time-out, a DONT_HAVE or a disconnect.
    moved,
    /// Of those: went to a peer that delivers and had nothing else to do, before the time-out of the one that had them.
    relieved,
    /// Wants that were asked of one more peer, because those that were asked never delivered anything and are silent.
    doubled,
    /// HAVE received.
    haves_in,
    /// DONT_HAVE received.
    dont_haves_in,
    /// HAVE sent.
    haves_out,
    /// DONT_HAVE sent.
    dont_haves_out,
    /// Reports that all peers were asked for a want in vain.
    unavailable,
    /// Rounds in which wants that nobody had were asked again.
    rebroadcasts,
    /// Wants that were refused because a session was full.
    refused_wants,
    /// Wants of peers taken.
    wants_in,
    /// Cancels of peers taken.
    cancels_in,
    /// Wants of peers dropped because their list was full.
    dropped_wants,
    /// Wants of peers replaced by more important ones.
    replaced_wants,
    /// Answers dropped because a peer asks and does not read.
    dropped_presences,
    /// Loads asked of the owner.
    loads,
    /// Loads whose block nobody wanted any more when it came.
    late_loads,
    /// Wants that were answered when the block arrived later.
    pushes,
    /// Inbound streams refused above the limit.
    refused_streams,
    /// Outbound streams that failed.
    failed_streams,
    /// Writes that passed their deadline.
    write_timeouts,
    /// Responses given up after their stream failed repeatedly.
    lost_responses,
    /// Times that a peer did not take its answers in time.
    stuck_peers,
    /// Times that what was on its way to such a peer was dropped, because all of them together held too much.
    given_up_peers,
    /// Wantlists said again in full after a stream or connection was lost.
    resent_wantlists,
    /// Request streams that were replaced because nothing came of what was said on them, though the peer opened another.
    replaced_streams,
    /// Times that reading was paused because found blocks were not released.
    pauses,
    /// Blocks that were asked for outside on behalf of the site.
    site_taken,
    /// Wants that waited for a mate.
    site_waits,
    /// Times that a mate did not fetch in time what others waited for, by the want.
    site_lapses,
    /// Blocks that were given up, because nobody outside sent them, for a mate to try.
    site_released,
    /// Blocks that were left to a mate that had asked for them as well.
    site_yielded,
    /// Words of peers about the site that were dropped: of no mate, or too many.
    site_dropped,
}
