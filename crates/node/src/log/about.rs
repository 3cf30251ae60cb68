//! What a stream says of itself (S3.6), as the API and the command line write it; kept by the log in `$about/<stream>`, which travels as all streams do.

use gemba_log::{Class, DescribeError, Description};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Fail};

/// A description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct About {
    /// What an event means, in a sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// The unit of its value, such as `pieces` or `°C`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Where the form of the payload is described: a URL or `/ipfs/…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// `durable` or `fast`: how its events are kept when nobody says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

impl About {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This one, with what `newer` says.
    #[must_use]
    pub fn changed(self, newer: Self) -> Self {
        Self {
            meaning: newer.meaning.or(self.meaning),
            unit: newer.unit.or(self.unit),
            schema: newer.schema.or(self.schema),
            class: newer.class.or(self.class),
        }
    }

    /// As the log keeps it.
    ///
    /// # Errors
    /// A class that is none.
    pub fn description(&self) -> Result<Description, Fail> {
        Ok(Description {
            meaning: self.meaning.clone().unwrap_or_default(),
            unit: self.unit.clone().unwrap_or_default(),
            schema: self.schema.clone().unwrap_or_default(),
            class: match self.class.as_deref() {
                Some(class) => parse_class(class)?,
                None => Class::default(),
            },
        })
    }
}

impl From<Description> for About {
    fn from(description: Description) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            meaning: some(description.meaning),
            unit: some(description.unit),
            schema: some(description.schema),
            class: match description.class {
                Class::Fast => Some("fast".to_owned()),
                Class::Durable => None,
            },
        }
    }
}

/// How events are kept.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_class(text: &str) -> Result<Class, Fail> {
    match text {
        "durable" => Ok(Class::Durable),
        "fast" => Ok(Class::Fast),
        _ => Err(
            Fail::new(Code::Usage, format!("{text:?} is no class of events"))
                .hint("durable and fast are"),
        ),
    }
}

/// What a refused description means for whoever called.
#[must_use]
pub fn describe_fail(error: &DescribeError) -> Fail {
    match error {
        DescribeError::Log(error) => super::fail(error),
        DescribeError::TooLong(_) => Fail::new(Code::Usage, error)
            .hint("`gemba add` the long text, and name it as the schema"),
        other => Fail::new(Code::Usage, other).hint(
            "streams whose names begin with $ are gemba's own, and say nothing of themselves",
        ),
    }
}
