//! One certificate order, from its creation to the chain (RFC 8555, 7.4), with DNS-01 challenges (8.4).

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hearth_types::Secret;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::hook::Record;
use super::journal::Journal;

/// Polling of the issuer while it checks the records and while it signs. That takes seconds; after 300 s the attempt
/// fails.
const ISSUER_POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(300));

/// Certificate chain and its private key, as PEM.
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: Secret,
}

/// Orders a certificate for these names.
///
/// The records that it sets are in the journal, and are still set when it returns. If the future is dropped, the
/// unfinished order expires at the issuer.
pub(super) async fn place(
    account: &Account,
    names: &[String],
    journal: &mut Journal,
    wait: Duration,
) -> Result<Issued, OrderError> {
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let order = account.new_order(&NewOrder::new(&identifiers)).await;
    let mut order = order.map_err(OrderError::from_new_order)?;
    prove(&mut order, journal, wait).await?;
    Ok(finalize(&mut order, names).await?)
}

/// Failure of an order.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// The issuer no longer knows the account.
    #[error("the issuer does not know the account")]
    Account(#[source] instant_acme::Error),
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Error type of an unknown account (RFC 8555, 6.7).
const ACCOUNT_DOES_NOT_EXIST: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

impl OrderError {
    fn from_new_order(error: instant_acme::Error) -> Self {
        match &error {
            instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(ACCOUNT_DOES_NOT_EXIST) => {
                Self::Account(error)
            }
            _ => Self::Other(anyhow!(error).context("ordering a certificate")),
        }
    }
}

/// Sets all records, waits, then requests the issuer's check of them.
async fn prove(order: &mut Order, journal: &mut Journal, wait: Duration) -> Result<()> {
    let mut records = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.context("fetching an authorization from the issuer")?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            // The issuer accepts an earlier proof.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => bail!("the authorization of {name} is not pending: {other:?}"),
        }
        let host = name.strip_prefix("*.").unwrap_or(&name).to_owned();
        let challenge = authorization.challenge(ChallengeType::Dns01);
        let challenge = challenge.with_context(|| format!("the issuer offers no DNS-01 challenge for {name}"))?;
        let value = challenge.key_authorization().dns_value();
        records.push(Record { name: format!("_acme-challenge.{host}"), value });
    }
    // Set all records before the issuer checks the first: a resolver may cache the records of a name, and the domain
    // and its wildcard are proved by records with the same name.
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
            challenge.set_ready().await.context("requesting the issuer's check of the records")?;
        }
    }
    match order.poll_ready(&ISSUER_POLLING).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(rejection(order).await),
        Err(error) => match order.state().status {
            OrderStatus::Invalid => Err(rejection(order).await),
            _ => Err(error).context("waiting for the issuer's check of the records"),
        },
    }
}

/// Returns the issuer's reasons for an invalid order.
async fn rejection(order: &mut Order) -> anyhow::Error {
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
        reasons.push("it gave no reason".to_owned());
    }
    anyhow!(
        "the issuer did not accept the records as proof (if it checked too early, set a longer --acme-wait): {}",
        reasons.join("; ")
    )
}

/// Generates a key, submits a signing request for it, and waits for the chain.
async fn finalize(order: &mut Order, names: &[String]) -> Result<Issued> {
    let mut params = CertificateParams::new(names).context("adding the domain to a signing request")?;
    // Issuers use only the alternative names.
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate().context("generating the key of a certificate")?;
    let request = params.serialize_request(&key).context("encoding the signing request")?;
    order.finalize_csr(request.der()).await.context("submitting the signing request")?;
    let chain = order.poll_certificate(&ISSUER_POLLING).await.context("waiting for the certificate")?;
    Ok(Issued { chain, key: Secret::new(key.serialize_pem()) })
}
