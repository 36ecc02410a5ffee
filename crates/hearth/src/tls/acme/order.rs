//! One certificate, from the order to its chain (RFC 8555, 7.4), proved by records of the domain (8.4).

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hearth_types::Secret;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::hook::Record;
use super::journal::Journal;

/// How long the issuer may take to look at the records, and to sign. It takes seconds; what takes longer is asked for anew.
const ISSUER_PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(300));

/// A certificate with its chain and its key, as PEM.
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: Secret,
}

/// Asks for a certificate for these names.
///
/// The records that it sets stand in the journal, and are still set at the end. Dropped, it leaves an order that nobody goes on
/// with, which expires.
pub(super) async fn place(
    account: &Account,
    names: &[String],
    journal: &mut Journal,
    wait: Duration,
) -> Result<Issued, Failed> {
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let order = account.new_order(&NewOrder::new(&identifiers)).await;
    let mut order = order.map_err(Failed::ordering)?;
    prove(&mut order, journal, wait).await?;
    Ok(finish(&mut order, names).await?)
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The issuer has forgotten us.
    #[error("the issuer does not know the account")]
    Account(#[source] instant_acme::Error),
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// RFC 8555, 6.7.
const ACCOUNT_DOES_NOT_EXIST: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

impl Failed {
    fn ordering(error: instant_acme::Error) -> Self {
        match &error {
            instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(ACCOUNT_DOES_NOT_EXIST) => {
                Self::Account(error)
            }
            _ => Self::Other(anyhow!(error).context("ordering a certificate")),
        }
    }
}

/// Sets all records, then lets the issuer look at them.
async fn prove(order: &mut Order, journal: &mut Journal, wait: Duration) -> Result<()> {
    let mut records = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.context("asking the issuer what is to be proved")?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            // It remembers an earlier proof.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => bail!("the issuer has closed the question whether {name} is ours: {other:?}"),
        }
        let host = name.strip_prefix("*.").unwrap_or(&name).to_owned();
        let challenge = authorization.challenge(ChallengeType::Dns01);
        let challenge = challenge.with_context(|| format!("the issuer takes no record as proof for {name}"))?;
        let value = challenge.key_authorization().dns_value();
        records.push(Record { name: format!("_acme-challenge.{host}"), value });
    }
    // All before the issuer looks at the first: a resolver may remember what it saw of a name, and the domain and what is below
    // it are proved by the same one.
    for record in &records {
        journal.set(record).await?;
    }
    if !records.is_empty() {
        tokio::time::sleep(wait).await;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01)
        {
            challenge.set_ready().await.context("asking the issuer to look at the records")?;
        }
    }
    match order.poll_ready(&ISSUER_PATIENCE).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(refusal(order).await),
        Err(error) => match order.state().status {
            OrderStatus::Invalid => Err(refusal(order).await),
            _ => Err(error).context("waiting for the issuer to look at the records"),
        },
    }
}

/// Why an order became invalid, in the issuer's words.
async fn refusal(order: &mut Order) -> anyhow::Error {
    let mut reasons: Vec<String> = order.state().error.iter().map(ToString::to_string).collect();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(problems.map(|problem| format!("{name}: {problem}")));
    }
    if reasons.is_empty() {
        reasons.push("it does not say why".to_owned());
    }
    anyhow!(
        "the issuer did not take the records as proof (if it looked too early, set a longer --acme-wait): {}",
        reasons.join("; ")
    )
}

/// Has a key of its own signed.
async fn finish(order: &mut Order, names: &[String]) -> Result<Issued> {
    let mut params = CertificateParams::new(names).context("naming the domain in a request")?;
    // Issuers go by the names alone.
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate().context("making the key of a certificate")?;
    let request = params.serialize_request(&key).context("asking for a signature")?;
    order.finalize_csr(request.der()).await.context("handing in the request for a signature")?;
    let chain = order.poll_certificate(&ISSUER_PATIENCE).await.context("waiting for the signature")?;
    Ok(Issued { chain, key: Secret::new(key.serialize_pem()) })
}
