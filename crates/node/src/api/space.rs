//! Routes about the space that blocks take: `gc`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::State as Extract;
use axum::response::Response;

use super::State;
use super::answer;
use super::extract::Json;
use super::types::{CollectRequest, Collected};
use crate::content::collect::{Extent, Stop, collect, compact, thorough};
use crate::daemon::{Call, Command};
use crate::error::Fail;

/// Progress lines come no faster than this.
const PROGRESS: Duration = Duration::from_millis(100);

/// Collects and gives the space back, until it is done, the caller is gone, or the daemon ends: what is removed by then is gone.
pub(super) async fn gc(
    Extract(state): Extract<Arc<State>>,
    Extension(call): Extension<Arc<Call>>,
    Json(request): Json<CollectRequest>,
) -> Response {
    answer::lines_blocking(&Arc::clone(&state), &Arc::clone(&call), move |lines| {
        let turn = state.turns.take()?;
        let mut told = Instant::now();
        let mut between = |report: &Collected, _bytes: u64| {
            if told.elapsed() < PROGRESS {
                return call.check();
            }
            told = Instant::now();
            lines.send(report)
        };
        let extent = if request.dry_run {
            Extent::Nothing
        } else {
            Extent::All
        };
        let mut report = collect(&state.store, || state.desired(), extent, &mut between)
            .map_err(|stop| state.heal(stop))?;
        if !request.dry_run {
            let freed = compact(
                &state.store,
                &thorough(),
                &mut report,
                |_| false,
                &mut between,
            );
            state.kept.collected(&report);
            freed?;
        }
        drop(turn);
        report.done = true;
        lines.send(&report)
    })
    .await
}

impl State {
    /// What ought to be here, as it is now.
    fn desired(&self) -> Result<crate::meta::PinRows, Fail> {
        self.handle.ask_blocking(Command::DesiredSet)?
    }

    /// A pin that lacks a block is not whole: it is fetched again.
    fn heal(&self, stop: Stop) -> Fail {
        if let Stop::Broken { root, .. } = &stop {
            let struck = |reply| Command::Struck(vec![**root], reply);
            if let Err(fail) = self.handle.ask_blocking(struck) {
                return fail;
            }
        }
        stop.into_fail()
    }
}
