//! The thread on which answers are validated, so that what a zone costs is not paid by whoever asks for another.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::keys::Keys;
use super::work::Asker;
use super::{Checked, Mode, Validator, check, validator};
use crate::record::{Answer, Question};
use crate::time::Clock;
use crate::upstream::failure::{Attempts, UpstreamError};
use crate::upstream::server::Reply;
use crate::upstream::{Ports, Upstream, ViewId};

/// Answers that wait to be validated; what comes beyond fails.
const QUEUE: usize = 1_024;
/// Validations under way at once: they mostly wait for keys.
const AT_ONCE: usize = 256;

/// See the module. The thread is started with the first answer.
#[derive(Debug)]
pub(in crate::upstream) struct Validators {
    /// For ports of the thread's own.
    upstreams: Vec<Arc<Upstream>>,
    clock: Clock,
    jobs: OnceLock<Option<mpsc::Sender<Job>>>,
}

struct Job {
    upstream: Arc<Upstream>,
    question: Question,
    message: Vec<u8>,
    deadline: Instant,
    done: oneshot::Sender<Result<Checked, UpstreamError>>,
}

impl Validators {
    pub(in crate::upstream) fn new(upstreams: &[Arc<Upstream>], clock: &Clock) -> Self {
        Self { upstreams: upstreams.to_vec(), clock: clock.clone(), jobs: OnceLock::new() }
    }

    /// The answer of a reply to `question`, if it is what its zone signed, or its zone provably signs nothing.
    ///
    /// # Errors
    /// [`UpstreamError::Bogus`]; whatever befell the questions for keys, and no room.
    pub(in crate::upstream) async fn validate(
        &self,
        upstream: &Arc<Upstream>,
        question: &Question,
        reply: Reply,
        deadline: Instant,
    ) -> Result<Answer, UpstreamError> {
        let jobs = self.jobs.get_or_init(|| start(self.upstreams.clone(), self.clock.clone()));
        let (done, outcome) = oneshot::channel();
        let Reply { mut answer, message, .. } = reply;
        let job = Job {
            upstream: Arc::clone(upstream),
            question: question.clone(),
            message: message.clone(),
            deadline,
            done,
        };
        let queued = jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok());
        if !queued {
            return Err(UpstreamError::Busy);
        }
        let late = || UpstreamError::Timeout(Attempts::default());
        let checked = timeout_at(deadline, outcome).await.map_err(|_| late())?.map_err(|_| late())??;
        for record in answer.records.iter_mut().chain(&mut answer.soa) {
            record.ttl = record.ttl.min(checked.ttl);
        }
        if checked.secure {
            super::prove(&mut answer, question, &message);
        }
        Ok(answer)
    }
}

/// Starts the thread; it ends when the last sender goes. `None`: the system has none to give.
fn start(upstreams: Vec<Arc<Upstream>>, clock: Clock) -> Option<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let run = move || runtime.block_on(serve(jobs, upstreams, clock));
    std::thread::Builder::new().name("dnssec".to_owned()).spawn(run).ok()?;
    Some(sender)
}

async fn serve(mut jobs: mpsc::Receiver<Job>, upstreams: Vec<Arc<Upstream>>, clock: Clock) {
    let ports = Arc::new(Ports::new(upstreams.iter().flat_map(|upstream| &upstream.servers)));
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut validators: HashMap<ViewId, Validator> = HashMap::new();
    while let Some(job) = jobs.recv().await {
        let Job { upstream, question, message, deadline, done } = job;
        let Mode::Validate { insecure, anchors } = &upstream.dnssec else { continue };
        let of_upstream = validators.entry(upstream.view).or_insert_with(|| {
            let (keys, ports) = (Arc::new(Keys::default()), Arc::clone(&ports));
            validator(Asker { upstream: Arc::clone(&upstream), ports, keys, clock: clock.clone() }, anchors)
        });
        let (validator, insecure) = (of_upstream.clone(), insecure.clone());
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        tokio::spawn(async move {
            let _place = place;
            let checked = timeout_at(deadline, check(&validator, &insecure, &question, message, deadline)).await;
            let _gone = done.send(checked.unwrap_or_else(|_| Err(UpstreamError::Timeout(Attempts::default()))));
        });
    }
}
