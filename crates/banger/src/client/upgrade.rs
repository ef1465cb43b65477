//! Requests that become a stream of frames.

use banger_api::UPGRADE;
use banger_api::endpoint::EXEC;
use banger_api::error::Code;
use banger_api::vm::ExecParams;
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue, UPGRADE as UPGRADE_HEADER};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{At, Client, checked, encode};
use crate::failure::Failure;

/// An upgraded connection.
pub(crate) struct Duplex {
    /// The connection itself.
    pub(crate) stream: UnixStream,
    /// Bytes of the stream that came along with the answer.
    pub(crate) early: Bytes,
}

impl Client {
    /// Asks for a command in a VM. Answers when the command may begin, which
    /// is when the VM runs.
    pub(crate) async fn exec(&self, vm: &str, params: &ExecParams) -> Result<Duplex, Failure> {
        let mut request = self.request("POST", &At::path(&[vm]).target(EXEC), encode(params)?);
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE_HEADER, HeaderValue::from_static(UPGRADE));
        let mut line = self.line().await?;
        let reply = checked(self.send(&mut line, request).await?).await?;
        let strange = || {
            Failure::new(
                Code::Internal,
                "bangerd did not open the stream that was asked for",
            )
        };
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(strange());
        }
        let upgraded = hyper::upgrade::on(reply)
            .await
            .map_err(|error| self.lost("lost the connection to", &error))?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| strange())?;
        Ok(Duplex {
            stream: parts.io.into_inner(),
            early: parts.read_buf,
        })
    }
}
