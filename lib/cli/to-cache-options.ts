/** Which cache a dump goes to, when its process is killed here, and how images go there: for proxy and pre-copy. */
import { addressOption, snapshotOption, timeoutOption, type ValuesOf } from './common-options.ts'
import { credentialOptions, readCredentials } from './credential-options.ts'
import { required, wholeNumber } from './parse.ts'
import { sendHelp, sendOptions } from './send-options.ts'

export const toCacheOptions = {
  ...addressOption,
  port: { type: 'string' },
  ...snapshotOption,
  until: { type: 'string', default: 'sealed' },
  ...timeoutOption,
  ...sendOptions,
  dedup: { type: 'boolean', default: false },
  ...credentialOptions,
} as const

const { address, timeout } = toCacheOptions

export const cacheAddressHelp = `      --address HOST   the host of the cache (default: ${address.default})
      --port N         the port of the cache`

export const agreementHelp = `      --until WHAT     kill the process here when the cache has all images (sealed,
                       the default), or when the target has restored it and holds it (running)
      --timeout SEC    how long the cache may be unreachable or take to agree, and how long
                       criu may be silent (default: ${timeout.default})`

export const sendToCacheHelp = `${sendHelp}
      --dedup          do not send pages that the cache has already, if it was started with
                       --dedup: for replicas and restarts over a slow link`

type Values = ValuesOf<typeof toCacheOptions>

/** The endpoint of the cache. Throws `USAGE`. */
export function readCacheEndpoint(values: Values) {
  const given = required('--port', values.port, "the cache's port, as in --port 9997")
  const port = wholeNumber('--port', given, 1, 65535)
  const { credentials, allowUids: uids } = readCredentials(values)
  return { kind: 'tcp' as const, host: values.address, port, credentials, uids }
}
