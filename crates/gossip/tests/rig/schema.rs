//! The schema of wire/07 as prost has it: the oracle of the wire, and the reader of what other engines answer.

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Rpc {
    #[prost(message, repeated, tag = "1")]
    pub(crate) subscriptions: Vec<SubOpts>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) publish: Vec<Message>,
    #[prost(message, optional, tag = "3")]
    pub(crate) control: Option<Control>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SubOpts {
    #[prost(bool, optional, tag = "1")]
    pub(crate) subscribe: Option<bool>,
    #[prost(string, optional, tag = "2")]
    pub(crate) topic: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(crate) from: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) data: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(crate) seqno: Option<Vec<u8>>,
    #[prost(string, optional, tag = "4")]
    pub(crate) topic: Option<String>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub(crate) signature: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "6")]
    pub(crate) key: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Control {
    #[prost(message, repeated, tag = "1")]
    pub(crate) ihave: Vec<IHave>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) iwant: Vec<Ids>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) graft: Vec<Graft>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) prune: Vec<Prune>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) idontwant: Vec<Ids>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IHave {
    #[prost(string, optional, tag = "1")]
    pub(crate) topic: Option<String>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) ids: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ids {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) ids: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Graft {
    #[prost(string, optional, tag = "1")]
    pub(crate) topic: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Prune {
    #[prost(string, optional, tag = "1")]
    pub(crate) topic: Option<String>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) peers: Vec<PeerInfo>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) backoff: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PeerInfo {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(crate) id: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) record: Option<Vec<u8>>,
}
