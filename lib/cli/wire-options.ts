/** Which protocol proxy and cache speak between them, and what does not go with the older one. */
import { type Memory, memoryOf, memoryOptions } from './memory-options.ts'
import { atMostOne, noneBeside, oneOf } from './parse.ts'

const wireOptions = { wire: { type: 'string', default: 'ferry' } } as const

/** What a cache takes, keeps and gives. */
export const cacheOptions = {
  ...wireOptions,
  ...memoryOptions,
  snapshot: { type: 'string' },
  timeout: { type: 'string' },
  criu: { type: 'string' },
} as const

/** How a proxy speaks with the cache. It needs memory for the older one only. */
export const proxyWireOptions = {
  ...wireOptions,
  'max-memory': memoryOptions['max-memory'],
  connections: { type: 'string' },
  until: { type: 'string', default: 'sealed' },
} as const

export const wireHelp = `      --wire WHAT      ferry: ours (the default); criu-remote: that of the image-proxy and
                       image-cache of criu --remote, where nobody answers or verifies`

export const proxyWireHelp = `${wireHelp}
      --max-memory SZ  there: most memory for images that are not sent yet`

const wires = ['ferry', 'criu-remote'] as const

interface Values {
  wire: string
  tls: boolean
  'key-file'?: string | undefined
}

interface ProxyValues extends Values {
  connections?: string | undefined
  'page-server-port'?: string | undefined
  until: string
  compress: string
  'rate-limit'?: string | undefined
  'no-checksum': boolean
  'max-memory'?: string | undefined
}

/** What a proxy needs for the wire of `criu --remote`; undefined for ours. Throws `USAGE` for options that do not go with it. */
export function remoteProxyOf(values: ProxyValues): Pick<Memory, 'maxMemory'> | undefined {
  const remote = isRemote(values, {
    '--connections': values.connections,
    '--page-server-port': values['page-server-port'],
    '--until running': values.until === 'running',
    '--compress': values.compress !== 'none',
    '--rate-limit': values['rate-limit'],
    '--no-checksum': values['no-checksum'],
  })
  if (!remote) atMostOne({ '--wire ferry': true, '--max-memory': values['max-memory'] })
  return remote ? memoryOf({ 'max-memory': values['max-memory'] }) : undefined
}

interface CacheValues extends Values {
  snapshot?: string | undefined
  restore: boolean
  keep: boolean
  'release-early': boolean
}

/** Whether a cache hears the wire of `criu --remote`. Throws `USAGE` for options that do not go with it. */
export function isRemoteCache(values: CacheValues): boolean {
  return isRemote(values, {
    '--snapshot': values.snapshot,
    '--restore': values.restore,
    '--keep': values.keep,
    '--release-early': values['release-early'],
  })
}

function isRemote(values: Values, others: Record<string, unknown>): boolean {
  const remote = oneOf('--wire', values.wire, wires) === 'criu-remote'
  noneBeside('--wire criu-remote', remote, { ...others, '--tls': values.tls, '--key-file': values['key-file'] })
  return remote
}
