/** Reads certificates and keys from their files. A fault names the file, and never shows its contents. */
import { constants } from 'node:crypto'
import { closeSync, fstatSync, readFileSync, type Stats } from 'node:fs'
import tls from 'node:tls'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { openRegularFile } from '../kernel/own-file.ts'

/** Bytes of a shared key: at least as many as the digest of the TLS suite has, at most as many as OpenSSL takes. */
const LEAST_KEY = 32
const MOST_KEY = 256
/**
 * Different bytes in a key: random bytes have many, and so has their hexadecimal text; a file written by mistake has
 * few.
 */
const LEAST_VALUES = 10

/** The name under which both ends know the shared key; it is sent in the clear. */
const IDENTITY = 'criu-ferry'

/** The same in every link. */
const common = {
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
  // No session is resumed: a peer that comes back shows its certificate, which may be revoked by then.
  secureOptions: constants.SSL_OP_NO_TICKET,
} as const

/** Options for Node's tls, at the client and at the server. */
export interface Secrets {
  client: tls.ConnectionOptions
  server: tls.TlsOptions
}

/** Reads and checks the files. Throws `USAGE` for one that cannot be used. */
export function readSecrets(credentials: Credentials): Secrets {
  return credentials.kind === 'tls' ? certificates(credentials) : sharedKey(credentials.key)
}

function certificates({ ca, cert, key, crl, anyName }: Extract<Credentials, { kind: 'tls' }>): Secrets {
  const context: tls.SecureContextOptions = {
    ...common,
    ca: blocks(ca, 'CERTIFICATE'),
    cert: blocks(cert, 'CERTIFICATE').join('\n'),
    key: readPrivate(key),
    // Node reads only the first list of a text.
    ...(crl !== undefined && { crl: blocks(crl, 'X509 CRL') }),
  }
  try {
    tls.createSecureContext(context)
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? (cause as Error).message
    throw new Fault('USAGE', `${cert} and ${key} cannot be used together (${code})`, {
      hint: 'a certificate and its private key, both PEM, the key without a passphrase',
      cause,
    })
  }
  const check: tls.ConnectionOptions = anyName ? { checkServerIdentity: () => undefined } : {}
  return {
    client: { ...context, ...check, rejectUnauthorized: true },
    server: { ...context, requestCert: true, rejectUnauthorized: true },
  }
}

function sharedKey(path: string): Secrets {
  const psk = readPrivate(path)
  if (psk.length < LEAST_KEY || psk.length > MOST_KEY || new Set(psk).size < LEAST_VALUES) {
    throw new Fault('USAGE', `${path} is no key: ${LEAST_KEY} to ${MOST_KEY} random bytes are wanted`, {
      hint: `head -c 32 /dev/urandom > ${path}`,
    })
  }
  // OpenSSL takes an external key in TLS 1.3 only with SHA-256. No certificate is accepted: no CA, and no name.
  const context = { ...common, ciphers: 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256', ca: [] }
  return {
    client: {
      ...context,
      rejectUnauthorized: true,
      checkServerIdentity: () => new Error('a certificate instead of the key'),
      pskCallback: () => ({ psk, identity: IDENTITY }),
    },
    server: {
      ...context,
      pskCallback: (_, identity) => (identity === IDENTITY ? psk : null),
    },
  }
}

/** Reads a file that only its owner may read, who is root or our own user. Throws `USAGE`. */
function readPrivate(path: string): Buffer {
  return readRegular(path, ({ uid, mode }) => {
    if (uid !== 0 && uid !== process.geteuid?.()) {
      throw new Fault('USAGE', `${path} belongs to another user (${uid})`, { hint: `copy it, or chown it to yourself` })
    }
    if ((mode & 0o077) !== 0) {
      const open = (mode & 0o777).toString(8).padStart(4, '0')
      throw new Fault('USAGE', `${path} can be used by others (mode ${open})`, { hint: `chmod 600 ${path}` })
    }
  })
}

/** The PEM blocks of one kind, at least one. Throws `USAGE` where there is none. */
function blocks(path: string, kind: string): string[] {
  const text = readRegular(path).toString('latin1')
  const found = text.match(new RegExp(`-----BEGIN ${kind}-----[^-]*-----END ${kind}-----`, 'g'))
  if (found !== null) return found
  throw new Fault('USAGE', `${path} has no ${kind} in it`, { hint: `a PEM file, with -----BEGIN ${kind}-----` })
}

/**
 * Reads all of a regular file, unless `check` throws. Symbolic links are followed: certificates are often installed
 * as links. Throws `USAGE`.
 */
function readRegular(path: string, check: (found: Stats) => void = () => {}): Buffer {
  let file: number | undefined
  try {
    file = openRegularFile(path)
    check(fstatSync(file))
    return readFileSync(file)
  } catch (cause) {
    if (cause instanceof Fault && cause.code === 'USAGE') throw cause
    if (cause instanceof Fault) throw new Fault('USAGE', `${path} is no file`, { hint: 'it is read more than once' })
    throw new Fault('USAGE', `cannot read ${path} (${(cause as NodeJS.ErrnoException).code})`, { cause })
  } finally {
    if (file !== undefined) closeSync(file)
  }
}
