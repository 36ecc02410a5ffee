//! Logins of users.
//!
//! ```text
//!   create, with a proof ──▶ login ──▶ renew, with the newest refresh token ──▶ the same login, another token
//!                             ├──▶ deleted: logout
//!                             ├──▶ deleted: an older token was presented, so two parties have it
//!                             ├──▶ deleted: its user is deleted, or gets another password
//!                             └──▶ deleted: expired, or the user has too many newer logins
//! ```
//!
//! The login is the unit that RFC 9700, 4.14.2 needs to detect a stolen refresh token: each use replaces the token, and
//! a token that was used before invalidates the whole login. The token contains the login's id, so older tokens are
//! recognized without being stored. A token with the id of a login that was never issued deletes the login, too: only a
//! party that has seen one of its tokens knows the id.

use std::fmt;
use std::str::FromStr;

use hearth_types::{LoginId, Secret, UserId};
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, SqlErr};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::connection::{Store, Write};
use crate::entity::login::{ActiveModel, Column, Entity, Model};
use crate::entity::user_account;
use crate::error::{Error, failed};
use crate::password::{self, PasswordHash};
use crate::row::{RowReader, micros};
use crate::user::User;

/// Maximum number of logins of a user: several machines, and some that were forgotten. A further one replaces the
/// oldest.
const LOGINS_MAX: usize = 32;
/// Random bytes of a refresh token.
const SECRET_BYTES: usize = 32;
/// Prefix of every refresh token, so that leaked ones are recognized.
const PREFIX: &str = "hearth_refresh_";

/// A user who is logged in at one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub id: LoginId,
    pub user: User,
    /// Time at which it expires, however often it is renewed.
    pub expires_at: Timestamp,
}

/// Times of a new login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginTimes {
    /// The current time.
    pub now: Timestamp,
    /// Time at which the login expires.
    pub expires_at: Timestamp,
}

/// Proof of a user's identity.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    /// The user presented the password with this hash; it must still be the stored one.
    Password(&'a PasswordHash),
    /// The identity provider authenticated the user.
    Issuer,
}

/// Outcome of renewing a login.
#[derive(Debug)]
pub enum Renewal {
    /// The login has a new token.
    Renewed(Login, RefreshToken),
    /// The login does not exist, or no longer.
    Unknown,
    /// The token had been used before; the login was deleted.
    Reused {
        /// The deleted login.
        id: LoginId,
        /// The user of the deleted login.
        user_id: UserId,
    },
}

/// Credential with which a client renews a login.
#[derive(Clone)]
pub struct RefreshToken {
    login_id: LoginId,
    text: Secret,
    hash: String,
}

/// The text is not a refresh token. The message does not repeat it: it may be a credential of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a refresh token")]
pub struct ParseTokenError;

impl RefreshToken {
    fn generate(login_id: LoginId) -> Self {
        let mut bytes = [0u8; SECRET_BYTES];
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        Self::new(login_id, &hex::encode(bytes))
    }

    fn new(login_id: LoginId, secret: &str) -> Self {
        let text = format!("{PREFIX}{}_{secret}", login_id.as_uuid().simple());
        let hash = hex::encode(Sha256::digest(text.as_bytes()));
        Self { login_id, text: Secret::new(text), hash }
    }

    /// Returns the whole token. Never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// Returns `true` if it is the newest token of a login. Compares in constant time.
    fn is_newest_of(&self, row: &Model) -> bool {
        self.hash.as_bytes().ct_eq(row.token_hash.as_bytes()).into()
    }
}

impl FromStr for RefreshToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let (id, secret) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(ParseTokenError)?;
        let is_secret = secret.len() == 2 * SECRET_BYTES && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_secret {
            return Err(ParseTokenError);
        }
        // Only one spelling of a login's id is accepted, so that the token has one hash.
        let token = Self::new(id.parse().map_err(|_| ParseTokenError)?, secret);
        if token.expose() == text { Ok(token) } else { Err(ParseTokenError) }
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshToken").field("login_id", &self.login_id).finish_non_exhaustive()
    }
}

impl Store {
    /// Logs a user in. If they have too many logins, the oldest is deleted.
    ///
    /// Returns `None` if the user was deleted, or has another password by now.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`], [`Error::Commit`].
    pub async fn create_login(
        &self,
        user_id: UserId,
        proof: Proof<'_>,
        times: LoginTimes,
    ) -> Result<Option<(Login, RefreshToken)>, Error> {
        let LoginTimes { now, expires_at } = times;
        let write = self.begin("creating a login of user", user_id).await?;
        if let Proof::Password(password) = proof
            && !password::is_current(&write, user_id, password).await?
        {
            return Ok(None);
        }
        let Some(user) = find_user(&write, user_id).await? else { return Ok(None) };
        let older = Entity::find()
            .filter(Column::UserId.eq(user_id.as_uuid()))
            .order_by_desc(Column::CreatedAtUs)
            .order_by_desc(Column::Id)
            .all(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        for row in older.iter().skip(LOGINS_MAX - 1) {
            delete(&write, LoginId::from_uuid(row.id)).await?;
        }
        let id = LoginId::generate();
        let token = RefreshToken::generate(id);
        let row = ActiveModel {
            id: Set(id.as_uuid()),
            user_id: Set(user_id.as_uuid()),
            token_hash: Set(token.hash.clone()),
            created_at_us: Set(micros(now)),
            renewed_at_us: Set(micros(now)),
            expires_at_us: Set(micros(expires_at)),
        };
        let row = match row.insert(&write.transaction).await {
            Ok(row) => row,
            // No user is deleted while this transaction holds the write lock; the table's constraint is handled
            // nevertheless.
            Err(error) => match error.sql_err() {
                Some(SqlErr::ForeignKeyConstraintViolation(_)) => return Ok(None),
                _ => return Err(write.failed(error)),
            },
        };
        write.commit().await?;
        Ok(Some((login(&row, user)?, token)))
    }

    /// Renews a login and replaces its token. A token that was replaced before deletes the login.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`], [`Error::Commit`].
    pub async fn renew_login(&self, token: &RefreshToken, now: Timestamp) -> Result<Renewal, Error> {
        let id = token.login_id;
        let write = self.begin("renewing login", id).await?;
        let row = Entity::find_by_id(id.as_uuid()).one(&write.transaction).await;
        let row = row.map_err(|error| write.failed(error))?.filter(|row| row.expires_at_us > micros(now));
        let Some(row) = row else { return Ok(Renewal::Unknown) };
        let user_id = UserId::from_uuid(row.user_id);
        if !token.is_newest_of(&row) {
            delete(&write, id).await?;
            write.commit().await?;
            return Ok(Renewal::Reused { id, user_id });
        }
        let Some(user) = find_user(&write, user_id).await? else { return Ok(Renewal::Unknown) };
        let next = RefreshToken::generate(id);
        Entity::update_many()
            .col_expr(Column::TokenHash, Expr::value(next.hash.as_str()))
            .col_expr(Column::RenewedAtUs, Expr::value(micros(now)))
            .filter(Column::Id.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(Renewal::Renewed(login(&row, user)?, next))
    }

    /// Deletes the login of a refresh token, also of a replaced one. Returns `false` if the login does not exist.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn delete_login_of(&self, token: &RefreshToken) -> Result<bool, Error> {
        self.delete_login(token.login_id).await
    }

    /// Deletes a login. Returns `false` if it does not exist.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn delete_login(&self, id: LoginId) -> Result<bool, Error> {
        let write = self.begin("deleting login", id).await?;
        let existed = delete(&write, id).await?;
        write.commit().await?;
        Ok(existed)
    }

    /// Returns the user of a live login.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn user_by_login(&self, id: LoginId, now: Timestamp) -> Result<Option<User>, Error> {
        let row = Entity::find_by_id(id.as_uuid()).one(&self.database).await;
        let row = row.map_err(failed("reading login", id))?.filter(|row| row.expires_at_us > micros(now));
        let Some(row) = row else { return Ok(None) };
        self.user(UserId::from_uuid(row.user_id)).await
    }

    /// Deletes expired logins. Returns their number.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn delete_expired_logins(&self, now: Timestamp) -> Result<u64, Error> {
        let write = self.begin("deleting", "expired logins").await?;
        let deleted = Entity::delete_many()
            .filter(Column::ExpiresAtUs.lte(micros(now)))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(deleted.rows_affected)
    }
}

async fn find_user(write: &Write, id: UserId) -> Result<Option<User>, Error> {
    let row = user_account::Entity::find_by_id(id.as_uuid()).one(&write.transaction).await;
    row.map_err(|error| write.failed(error))?.map(User::try_from).transpose()
}

async fn delete(write: &Write, id: LoginId) -> Result<bool, Error> {
    let deleted = Entity::delete_by_id(id.as_uuid()).exec(&write.transaction).await;
    Ok(deleted.map_err(|error| write.failed(error))?.rows_affected > 0)
}

fn login(row: &Model, user: User) -> Result<Login, Error> {
    let reader = RowReader::new("login", row.id);
    let expires_at = reader.time("expires_at_us", row.expires_at_us)?;
    Ok(Login { id: LoginId::from_uuid(row.id), user, expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_contains_its_login_and_is_not_printed() {
        let id = LoginId::generate();
        let token = RefreshToken::generate(id);
        let again: RefreshToken = token.expose().parse().expect("a token");
        assert_eq!((again.login_id, &again.hash), (id, &token.hash));
        let secret = token.expose().rsplit_once('_').expect("three parts").1.to_owned();
        assert!(!format!("{token:?}").contains(&secret));
        assert_ne!(RefreshToken::generate(id).hash, token.hash);
    }

    #[test]
    fn other_texts_are_rejected() {
        let (id, secret) = (LoginId::generate(), "0".repeat(64));
        let simple = id.as_uuid().simple();
        for (text, is_valid) in [
            (format!("hearth_refresh_{simple}_{secret}"), true),
            (format!("hearth_refresh_{id}_{secret}"), false),
            (format!("hearth_refresh_{simple}_{secret}0"), false),
            (format!("hearth_refresh_{simple}_{}", &secret[1..]), false),
            (format!("hearth_refresh_{simple}_{}x", &secret[1..]), false),
            (format!("hearth_refresh_{simple}"), false),
            (format!("hearth_refresh_x_{secret}"), false),
            (format!("{simple}_{secret}"), false),
            (format!(" hearth_refresh_{simple}_{secret}"), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<RefreshToken>().is_ok(), is_valid, "{text}");
        }
    }
}
