//! What a request says, as types. These are axum's extractors, but what they refuse is a failure in the form of all others (LH-3).

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Fail};

/// The segments of the path that have names.
pub(super) struct Path<T>(pub(super) T);

/// What stands behind the `?`.
pub(super) struct Query<T>(pub(super) T);

/// A body, and an answer.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Fail;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fail> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0))
            .map_err(|e| refused(&e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Fail;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fail> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query
            .map(|query| Self(query.0))
            .map_err(|e| refused(&e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Fail;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fail> {
        let body = axum::Json::from_request(request, state).await;
        body.map(|body| Self(body.0))
            .map_err(|e| refused(&e.body_text()))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn refused(why: &str) -> Fail {
    // The libraries' own beginnings say nothing to whoever sent it.
    let why = [
        "Failed to deserialize query string: ",
        "Failed to deserialize the JSON body into the target type: ",
        "Failed to parse the request body as JSON: ",
    ]
    .iter()
    .find_map(|words| why.strip_prefix(words))
    .unwrap_or(why);
    Fail::new(Code::Usage, format!("the request cannot be read: {why}")).hint(
        "names, types and the form of bodies stand in the specs; with curl, --json sends a body as what it is",
    )
}
