//! Bugs that can be planted, so that tests prove that the simulator finds such ones.

/// A bug that consumers really had. It sleeps unless it is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub enum Planted {
    /// The offset is durable before the effect: a crash between them loses the effect.
    OffsetBeforeEffect,
    /// The effect is durable before the offset: a crash between them does it twice.
    EffectBeforeOffset,
    /// An acknowledgement whose lease ran out counts all the same.
    IgnoresTokens,
    /// The hash of an offset is not looked at.
    IgnoresHashes,
    /// What was refused is forgotten with the next acknowledgement.
    ForgetsAside,
    /// The generation is not looked at: who was replaced goes on.
    IgnoresGeneration,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::OffsetBeforeEffect,
        Self::EffectBeforeOffset,
        Self::IgnoresTokens,
        Self::IgnoresHashes,
        Self::ForgetsAside,
        Self::IgnoresGeneration,
    ];
}
