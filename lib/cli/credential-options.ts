/** Who may be at the other end of a TCP connection: the same for every command that has such a connection. */
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import type { ValuesOf } from './common-options.ts'
import { atMostOne, noneBeside, required, wholeNumber } from './parse.ts'

/** The names are CRIU's where CRIU has such an option. */
export const credentialOptions = {
  tls: { type: 'boolean', default: false },
  'tls-cacert': { type: 'string' },
  'tls-cert': { type: 'string' },
  'tls-key': { type: 'string' },
  'tls-cacrl': { type: 'string' },
  'tls-no-cn-verify': { type: 'boolean', default: false },
  'key-file': { type: 'string' },
  insecure: { type: 'boolean', default: false },
  'allow-uid': { type: 'string', multiple: true },
} as const

/** The part of the usage text about them. */
export const credentialHelp = `between hosts, use one of these at both ends. Peers that fail to authenticate within
10 s are disconnected; both ends log it.
      --tls            TLS 1.3 with certificates, in PEM files:
        --tls-cacert FILE   the CA that signed the certificates of both ends
        --tls-cert FILE     our certificate
        --tls-key FILE      its private key, mode 0600
        --tls-cacrl FILE    certificates that the CA has revoked
        --tls-no-cn-verify  accept a certificate of the cache that is for another name
      --key-file FILE  TLS 1.3 with a shared key, mode 0600: 32 to 256 random bytes,
                       as from head -c 32 /dev/urandom
      --insecure       plain TCP, in a network and between users that you trust
      --allow-uid UID  on loopback without --tls or --key-file: accept this user at the other
                       end, besides root and our own user; may be repeated. The end of an
                       ssh -L belongs to the user who started it, at the far host to the
                       user it logged in as`

const HIGHEST_UID = 2 ** 32 - 2

type Values = ValuesOf<typeof credentialOptions>

/**
 * `credentials`: what both ends prove; plain TCP if undefined. `allowUids`: users of this host who may be at the other
 * end of plain loopback, beside root and our own; everybody if undefined. `insecure`: plain TCP may lead to other
 * hosts. Throws `USAGE`.
 */
export function readCredentials(values: Values) {
  const { tls, insecure, 'allow-uid': uids, 'key-file': key } = values
  const credentials = credentialsOf(values)
  noneBeside('--allow-uid', uids, { '--insecure': insecure, '--tls': tls, '--key-file': key })
  const allowUids = insecure ? undefined : (uids ?? []).map((uid) => wholeNumber('--allow-uid', uid, 0, HIGHEST_UID))
  return { credentials, allowUids, insecure }
}

function credentialsOf(values: Values): Credentials | undefined {
  const { tls, 'key-file': key, insecure } = values
  atMostOne({ '--tls': tls, '--key-file': key, '--insecure': insecure })
  if (tls) {
    return {
      kind: 'tls',
      ca: required('--tls-cacert', values['tls-cacert'], 'the CA, a PEM file'),
      cert: required('--tls-cert', values['tls-cert'], 'our certificate, a PEM file'),
      key: required('--tls-key', values['tls-key'], "the certificate's private key, a PEM file"),
      crl: values['tls-cacrl'],
      anyName: values['tls-no-cn-verify'],
    }
  }
  const stray = Object.entries(values).find(([flag, value]) => flag.startsWith('tls-') && value)
  if (stray !== undefined)
    throw new Fault('USAGE', `--${stray[0]} needs --tls`, { hint: 'without --tls it does nothing' })
  return key === undefined ? undefined : { kind: 'key', key }
}
