//! Where users are logged in.
//!
//! ```text
//!   begin, with a proof ──▶ a login ──▶ renew, with the newest refresh token ──▶ the same login, another token
//!                             ├──▶ end: logout
//!                             ├──▶ an older token is shown: two have it, so nobody keeps it
//!                             ├──▶ its user is deleted, or gets another password
//!                             └──▶ expired, or the user's newer logins are too many
//! ```
//!
//! A login is what RFC 9700, 4.14.2 needs to tell a stolen refresh token: each use replaces the token, and one that was used before ends
//! all of it. The token names its login, so older tokens need not be kept to be known again. One that names a login and was never
//! issued ends it, too: only who has seen a token of it knows its name.

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
use crate::row::{Reading, micros};
use crate::user::User;

/// Logins of a user at a time: several machines, and some that were forgotten. The oldest ends when there is another one.
const LOGINS_MAX: usize = 32;
/// Random bytes of a refresh token.
const SECRET_BYTES: usize = 32;
/// What every refresh token begins with, so that it is known for what it is where it should not be.
const PREFIX: &str = "hearth_refresh_";

/// A user who is logged in at one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The login.
    pub id: LoginId,
    /// Who.
    pub user: User,
    /// When it ends, however often it is renewed.
    pub expires_at: Timestamp,
}

/// The times of a new login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginTimes {
    /// The time.
    pub now: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// How it is known who somebody is.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    /// They knew this password; if it is still theirs.
    Password(&'a PasswordHash),
    /// Their identity provider said so.
    Issuer,
}

/// What came of renewing a login.
#[derive(Debug)]
pub enum Renewed {
    /// It goes on, with another token.
    Renewed(Login, RefreshToken),
    /// There is no such login, or no longer.
    Unknown,
    /// The token had been used before, and the login is ended.
    Reused {
        /// The login that was.
        id: LoginId,
        /// Whose it was.
        user_id: UserId,
    },
}

/// What a client renews a login with.
#[derive(Clone)]
pub struct RefreshToken {
    login_id: LoginId,
    text: Secret,
    hash: String,
}

/// The text is no refresh token. It is not repeated: it may be a credential of another kind.
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

    /// The whole token. Never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// Whether it is the newest one of a login.
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
        // One login has one spelling here, so that its hash is one, too.
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
    /// Logs a user in. Their oldest login ends when they have too many. `None`: the user is gone, or has another password
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`], [`Error::Commit`].
    pub async fn begin_login(
        &self,
        user_id: UserId,
        proof: Proof<'_>,
        times: LoginTimes,
    ) -> Result<Option<(Login, RefreshToken)>, Error> {
        let LoginTimes { now, expires_at } = times;
        let write = self.begin("beginning a login of user", user_id).await?;
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
            // Nobody deletes a user while it is our turn to write, but the rule is the table's.
            Err(error) => match error.sql_err() {
                Some(SqlErr::ForeignKeyConstraintViolation(_)) => return Ok(None),
                _ => return Err(write.failed(error)),
            },
        };
        write.commit().await?;
        Ok(Some((login(&row, user)?, token)))
    }

    /// Renews a login: the token that is shown is replaced. One that was replaced before ends the login.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`], [`Error::Commit`].
    pub async fn renew_login(&self, token: &RefreshToken, now: Timestamp) -> Result<Renewed, Error> {
        let id = token.login_id;
        let write = self.begin("renewing login", id).await?;
        let row = Entity::find_by_id(id.as_uuid()).one(&write.transaction).await;
        let row = row.map_err(|error| write.failed(error))?.filter(|row| row.expires_at_us > micros(now));
        let Some(row) = row else { return Ok(Renewed::Unknown) };
        let user_id = UserId::from_uuid(row.user_id);
        if !token.is_newest_of(&row) {
            delete(&write, id).await?;
            write.commit().await?;
            return Ok(Renewed::Reused { id, user_id });
        }
        let Some(user) = find_user(&write, user_id).await? else { return Ok(Renewed::Unknown) };
        let next = RefreshToken::generate(id);
        Entity::update_many()
            .col_expr(Column::TokenHash, Expr::value(next.hash.as_str()))
            .col_expr(Column::RenewedAtUs, Expr::value(micros(now)))
            .filter(Column::Id.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(Renewed::Renewed(login(&row, user)?, next))
    }

    /// Ends the login that a refresh token is of, also one that was replaced. `false`: there is no such login.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn end_login_of(&self, token: &RefreshToken) -> Result<bool, Error> {
        self.end_login(token.login_id).await
    }

    /// Ends a login. `false`: there is no such login.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn end_login(&self, id: LoginId) -> Result<bool, Error> {
        let write = self.begin("ending login", id).await?;
        let was_there = delete(&write, id).await?;
        write.commit().await?;
        Ok(was_there)
    }

    /// Who is logged in so.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn user_by_login(&self, id: LoginId, now: Timestamp) -> Result<Option<User>, Error> {
        let row = Entity::find_by_id(id.as_uuid()).one(&self.database).await;
        let row = row.map_err(failed("reading login", id))?.filter(|row| row.expires_at_us > micros(now));
        let Some(row) = row else { return Ok(None) };
        self.user(UserId::from_uuid(row.user_id)).await
    }

    /// Forgets what expired. Returns how many logins that were.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn forget_expired_logins(&self, now: Timestamp) -> Result<u64, Error> {
        let write = self.begin("forgetting", "expired logins").await?;
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
    let reading = Reading::new("login", row.id);
    let expires_at = reading.time("expires_at_us", row.expires_at_us)?;
    Ok(Login { id: LoginId::from_uuid(row.id), user, expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_login_and_is_not_shown() {
        let id = LoginId::generate();
        let token = RefreshToken::generate(id);
        let again: RefreshToken = token.expose().parse().expect("a token");
        assert_eq!((again.login_id, &again.hash), (id, &token.hash));
        let secret = token.expose().rsplit_once('_').expect("three parts").1.to_owned();
        assert!(!format!("{token:?}").contains(&secret));
        assert_ne!(RefreshToken::generate(id).hash, token.hash);
    }

    #[test]
    fn anything_else_is_no_token() {
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
