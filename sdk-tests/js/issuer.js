// Third-party OpenID Connect provider for Rust tests. It prints its URL, reads its client as one line of JSON, and exits when its
// standard input is closed. It logs in every visitor without a prompt, as the user of the last request to `/as/NAME`.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'

import Provider from 'oidc-provider'

let account = 'ada'
let provider

async function interact(request, response) {
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response)
  if (account === 'nobody') {
    const denial = { error: 'access_denied', error_description: 'not today' }
    return provider.interactionFinished(request, response, denial)
  }
  if (prompt.name === 'login') return provider.interactionFinished(request, response, { login: { accountId: account } })
  const grant = grantId
    ? await provider.Grant.find(grantId)
    : new provider.Grant({ accountId: session.accountId, clientId: params.client_id })
  grant.addOIDCScope(params.scope)
  return provider.interactionFinished(request, response, { consent: { grantId: await grant.save() } })
}

const server = createServer((request, response) => {
  const [, name] = request.url.match(/^\/as\/(\w+)$/) ?? []
  if (name) {
    account = name
    return response.writeHead(204).end()
  }
  if (!provider) return response.writeHead(503).end()
  if (!request.url.startsWith('/interaction/')) return provider.callback()(request, response)
  return interact(request, response).catch((error) => response.writeHead(500).end(String(error)))
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
const issuer = `http://127.0.0.1:${server.address().port}`
console.log(issuer)

const lines = createInterface({ input: process.stdin })
lines.once('line', (line) => {
  const { id, secret, callback } = JSON.parse(line)
  const auth = secret ? { client_secret: secret } : { token_endpoint_auth_method: 'none' }
  provider = new Provider(issuer, {
    clients: [{ client_id: id, redirect_uris: [callback], ...auth }],
    claims: { openid: ['sub'], email: ['email'] },
    // Put the e-mail address into the ID token, as many providers do.
    conformIdTokenClaims: false,
    findAccount: (_, sub) => ({ accountId: sub, claims: () => ({ sub, email: `${sub}@example.com` }) }),
    interactions: { url: (_, { uid }) => `/interaction/${uid}` },
    features: { devInteractions: { enabled: false } },
    cookies: { keys: ['only for tests'] },
  })
})
lines.once('close', () => process.exit(0))
