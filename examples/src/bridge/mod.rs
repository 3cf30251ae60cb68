//! Parts of the bridge that know nothing of MQTT.

pub(crate) mod names;
pub(crate) mod partition;
