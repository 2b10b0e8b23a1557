/**
 * Who may speak on a TCP link: TLS 1.3, with a certificate at both ends or with a key that both ends have.
 *
 * A link is given out only when the other end has proved who it is; until then nothing of the wire is sent or read.
 * Who cannot prove it, or takes too long, is sent away. Files are read for every link: a new certificate or a new list
 * of revoked ones counts from the next link on, and a cache need not be stopped for it.
 */
import type net from 'node:net'
import tls from 'node:tls'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { duplicate } from '../kernel/fd.ts'
import { peek } from '../kernel/peek.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { Link } from './link.ts'
import { duplexLink, fdOf } from './node-link.ts'
import { readSecrets, type Secrets } from './tls-secrets.ts'

/** How long a handshake may take, however often the other end sends a byte. */
const HANDSHAKE_MS = 10_000
/** Handshakes at a time, of clients whose greeting is here; when one more comes, the oldest of the peer that has most is given up. */
const MOST_HANDSHAKES = 64

const late = `no TLS handshake within ${HANDSHAKE_MS / 1000} s`
const wants = (kind: Credentials['kind']): string => (kind === 'tls' ? '--tls' : '--key-file')

/**
 * Proves who we are to the cache at `host`, and it to us. Returns when its first byte is here: in TLS 1.3 only that
 * says that it has taken our certificate. Throws `LINK`, `USAGE` for our own files, or the signal's reason.
 */
export function secureClient(
  raw: net.Socket,
  { host, peer }: { host: string; peer: string },
  credentials: Credentials,
  signal: AbortSignal,
): Promise<Link> {
  return new Promise((resolve, reject) => {
    const over = (): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
    }
    const fail = (error: unknown): void => {
      over()
      raw.destroy()
      reject(error)
    }
    const stop = (): void => fail(signal.reason)
    const timer = setTimeout(() => fail(new Fault('LINK', `${peer}: ${late}`)), HANDSHAKE_MS)
    signal.addEventListener('abort', stop)
    if (signal.aborted) return stop()
    raw.on('error', () => {})
    const secrets = tryRead(credentials, fail)
    if (secrets === undefined) return
    const socket = tls.connect({ ...secrets.client, socket: raw, host })
    let proved = false
    const refused = (error?: Error): void => fail(clientFault(peer, credentials.kind, proved, error))
    const readable = (): void => {
      if (socket.readableLength === 0) return void socket.read()
      over()
      socket.off('readable', readable).off('end', refused).off('close', closed)
      resolve(duplexLink(socket, peer))
    }
    const closed = (): void => refused()
    socket.on('error', refused).on('end', refused).on('close', closed)
    socket.once('secureConnect', () => {
      // In TLS 1.3 a shared key is used as if it were an earlier session's.
      if (credentials.kind === 'key' && !socket.isSessionReused()) return refused(new Error('not by the key'))
      proved = true
      socket.on('readable', readable)
    })
  })
}

/** The header of a TLS record, and the longest one of a handshake (RFC 8446, 5.1). */
const RECORD_HEADER = 5
const HANDSHAKE_RECORD = 22
const LONGEST_RECORD = RECORD_HEADER + 2 ** 14
/** A greeting is looked at, and thrown away: what is in it is no secret. */
const greeting = Buffer.alloc(LONGEST_RECORD)

function left(): Fault {
  return new Fault('LINK', 'the client left in the TLS handshake')
}

/**
 * Waits until the client's greeting is here whole. Until then a client costs a socket and a timer: who stalls
 * takes no place from those who come to speak, and no TLS is begun for it. Throws `LINK`, also after `HANDSHAKE_MS`, and `IO`.
 */
async function greeted(raw: net.Socket): Promise<void> {
  const probe = duplicate(fdOf(raw))
  let open = true
  const close = (reason?: Error): void => {
    if (open) closeFd(probe, reason)
    open = false
  }
  const gone = (): void => close(left())
  const timer = setTimeout(() => close(new Fault('LINK', late)), HANDSHAKE_MS)
  raw.once('close', gone)
  try {
    const header = greeting.subarray(0, RECORD_HEADER)
    if ((await peek(probe, header)) < header.length) throw left()
    if (header[0] !== HANDSHAKE_RECORD) return
    const record = greeting.subarray(0, Math.min(RECORD_HEADER + header.readUInt16BE(3), LONGEST_RECORD))
    if ((await peek(probe, record)) < record.length) throw left()
  } finally {
    clearTimeout(timer)
    raw.off('close', gone)
    close()
  }
}

type Fail = (error: unknown) => void

/** The one that has been under way for longest, of those from the source that has most. */
function oldestOfMost(underWay: ReadonlyMap<Fail, string>): Fail | undefined {
  const shares = new Map<string, number>()
  for (const source of underWay.values()) shares.set(source, (shares.get(source) ?? 0) + 1)
  const most = Math.max(...shares.values())
  return [...underWay].find(([, source]) => shares.get(source) === most)?.[0]
}

/**
 * Lets the clients of a server in: each that connected becomes a link, or is sent away and a `LINK` fault. `source`: whose share of
 * the handshakes it counts to.
 */
export function secureServer(
  credentials: Credentials,
): (raw: net.Socket, peer: string, source: string) => Promise<Link> {
  const underWay = new Map<Fail, string>()
  const handshake = (raw: net.Socket, peer: string, source: string): Promise<Link> =>
    new Promise((resolve, reject) => {
      const fail = (error: unknown): void => {
        over()
        raw.destroy()
        reject(error)
      }
      const over = (): void => {
        clearTimeout(timer)
        underWay.delete(fail)
      }
      const timer = setTimeout(() => fail(new Fault('LINK', late)), HANDSHAKE_MS)
      const tooMany = new Fault('LINK', 'too many handshakes at a time')
      if (underWay.size >= MOST_HANDSHAKES) oldestOfMost(underWay)?.(tooMany)
      underWay.set(fail, source)
      raw.on('error', () => {})
      const secrets = tryRead(credentials, fail)
      if (secrets === undefined) return
      // Who closes in the handshake is gone, not half open.
      raw.allowHalfOpen = false
      const server = tls.createServer(secrets.server)
      server.on('tlsClientError', (error, socket) => fail(serverFault(credentials.kind, error, socket)))
      server.on('secureConnection', (socket) => {
        socket.allowHalfOpen = true
        // A shared key looks like an earlier session; where there are certificates, one is shown every time.
        const proved =
          credentials.kind === 'key' ? socket.isSessionReused() : socket.authorized && !socket.isSessionReused()
        if (!proved) return fail(new Fault('LINK', 'the client proved nothing'))
        over()
        resolve(duplexLink(socket, peer))
      })
      server.emit('connection', raw)
    })
  return async (raw, peer, source) => {
    raw.on('error', () => {})
    try {
      await greeted(raw)
    } catch (error) {
      raw.destroy()
      throw error
    }
    return handshake(raw, peer, source)
  }
}

function tryRead(credentials: Credentials, fail: (error: unknown) => void): Secrets | undefined {
  try {
    return readSecrets(credentials)
  } catch (error) {
    fail(error)
    return undefined
  }
}

/** `CERT_HAS_EXPIRED` as words. */
function words(code: string): string {
  return code
    .replace(/^ERR_SSL_/, '')
    .toLowerCase()
    .replaceAll('_', ' ')
}

const notTls = ['ERR_SSL_WRONG_VERSION_NUMBER', 'ERR_SSL_HTTP_REQUEST', 'ERR_SSL_PACKET_LENGTH_TOO_LONG']

/** What the client says when the cache did not let it in, or is not the right one. */
function clientFault(peer: string, kind: Credentials['kind'], proved: boolean, error?: Error): Fault {
  const { code = '', host } = (error ?? {}) as NodeJS.ErrnoException & { host?: string }
  const fault = (text: string, hint: string): Fault => new Fault('LINK', `${peer} ${text}`, { hint, cause: error })
  if (notTls.includes(code)) return fault('does not speak TLS', `start the cache with ${wants(kind)} too`)
  if ((error === undefined || code === 'ECONNRESET') && (kind === 'key' || !proved)) {
    return fault('closed the link in the TLS handshake', "the cache's log says why")
  }
  if (kind === 'key') {
    return fault('does not have our key', 'is it the same --key-file at both ends, and does the cache use one?')
  }
  if (proved || code.includes('_ALERT_')) {
    const reason = code.includes('_ALERT_') ? ` (${words(code)})` : ''
    return fault(`did not accept our certificate${reason}`, "expired, revoked, of another CA? the cache's log says it")
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return fault(`has a certificate for another name than ${host}`, 'use the name that is in it as --address')
  }
  return fault(`has a certificate that is refused: ${words(code)}`, 'is it of the CA in --tls-cacert?')
}

/** What the cache says of a client that was not let in. */
function serverFault(kind: Credentials['kind'], error: Error, socket: tls.TLSSocket): Fault {
  const { code = '' } = error as NodeJS.ErrnoException
  const fault = (text: string, hint?: string): Fault => new Fault('LINK', text, { ...(hint && { hint }), cause: error })
  const refusal = socket.authorizationError as unknown
  if (refusal) return fault(`the client's certificate is refused: ${words(String(refusal))}`)
  if (notTls.includes(code)) return fault('the client does not speak TLS', `start it with ${wants(kind)} too`)
  if (code === 'ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE') return fault('the client has no certificate')
  if (code === 'ERR_SSL_BINDER_DOES_NOT_VERIFY') return fault('the client has another key')
  if (kind === 'key' && code === 'ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM') return fault('the client has no key')
  if (code === 'ECONNRESET') return left()
  return fault(`the TLS handshake failed: ${words(code)}`)
}
