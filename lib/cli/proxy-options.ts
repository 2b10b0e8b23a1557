/** The command line of proxy. */
import { commandName } from '../command-name.ts'
import { type Until, untils } from '../format/enums.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { MOST_CONNECTIONS } from '../format/stripes.ts'
import {
  addressOption,
  daemonCommonHelp,
  snapshotHelp,
  snapshotOption,
  timeoutOption,
  untilHelp,
  untilOption,
  type ValuesOf,
} from './common-options.ts'
import { credentialHelp, credentialOptions, type Protection, readCredentials } from './credential-options.ts'
import { daemonHelp, daemonOptions } from './daemon-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { inheritedFd } from './inherited-fds.ts'
import { memoryOptions, readMemory } from './memory-options.ts'
import { atMostOne, noneBeside, oneOf, portOf, required, timeoutMs, wholeNumber } from './parse.ts'
import { dedupHelp, dedupOption, readSendOptions, type SendChoice, sendHelp, sendOptions } from './send-options.ts'
import { isCriuRemote, wireHelp, wireOption } from './wire-option.ts'

export const proxyOptions = {
  ...addressOption,
  port: { type: 'string' },
  connections: { type: 'string' },
  'ps-socket': { type: 'string' },
  dir: { type: 'string', short: 'D' },
  'page-server-port': { type: 'string' },
  ...snapshotOption,
  ...untilOption,
  ...timeoutOption,
  ...sendOptions,
  ...dedupOption,
  ...wireOption,
  'max-memory': memoryOptions['max-memory'],
  ...credentialOptions,
  ...daemonOptions,
} as const

const DEFAULT_CONNECTIONS = '1'

const proxy = commandName('proxy')

export const proxyUsage = `usage: ${proxy} --address HOST --port N -D DIR [OPTIONS]

The image-proxy, a daemon on the source host. It forwards what criu dump --stream -D DIR
dumps here to the image-cache at HOST. With --action-script DIR/post-dump criu kills the
process only when the cache agrees.

      --address HOST   the host of the cache (default: ${proxyOptions.address.default})
      --port N         the port of the cache
      --connections N  TCP connections for each snapshot, 1 to ${MOST_CONNECTIONS} (default: ${DEFAULT_CONNECTIONS})
      --ps-socket FD   instead of --port: FD is a socket that is connected to the cache, for
                       one snapshot
  -D, --dir DIR        made if it is missing; gets streamer-capture.sock and img-proxy.sock
      --page-server-port N
                       also take rounds before a dump, from criu pre-dump and criu dump
                       --track-mem with --page-server --address 127.0.0.1 --port N;
                       0: the kernel chooses the port, and it is printed
${snapshotHelp}
${untilHelp}
      --timeout SEC    how long the cache may be unreachable or take to agree, and how long
                       criu may be silent (default: ${proxyOptions.timeout.default})
${sendHelp}
${dedupHelp}
${wireHelp}
      --max-memory SZ  with --wire criu-remote: most memory for images that are not sent yet
                       (default: as for ${commandName('cache')})
${daemonCommonHelp}

${daemonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the source host:
  ${proxy} --address 127.0.0.1 --port 9997 -D /run/ferry &
  criu dump --stream -t $PID -D /run/ferry --action-script /run/ferry/post-dump`

type Values = ValuesOf<typeof proxyOptions>

interface TcpCache {
  kind: 'tcp'
  host: string
  port: number
  credentials: Protection['credentials']
  uids: Protection['allowUids']
}

interface ProxyChoice {
  cache: TcpCache | { kind: 'fd'; fd: number }
  /** Plain TCP may lead to other hosts. */
  insecure: boolean
  agreed: { until: Until; connections: number; timeoutMs: number }
  send: SendChoice
  /** For the wire of `criu --remote`, where the id may be any text; ours if undefined. */
  remote: { maxMemory: number; snapshot: string | undefined } | undefined
  directory: string
  /** A fresh one for each snapshot if undefined. */
  id: SnapshotId | undefined
  pagePort: number | undefined
}

/** What proxy is to do. Throws `USAGE`. */
export function readProxyOptions(values: Values): ProxyChoice {
  const { dir, snapshot, insecure } = values
  const directory = required('--dir', dir, 'the directory that criu dump --stream gets as -D')
  const remote = readRemote(values)
  return {
    directory,
    remote,
    id: snapshot === undefined || remote !== undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    cache: readCache(values),
    insecure,
    agreed: {
      until: oneOf('--until', values.until, untils),
      connections: wholeNumber('--connections', values.connections ?? DEFAULT_CONNECTIONS, 1, MOST_CONNECTIONS),
      timeoutMs: timeoutMs(values.timeout),
    },
    send: readSendOptions(values),
    pagePort: portOf('--page-server-port', values['page-server-port']),
  }
}

function readCache(values: Values): ProxyChoice['cache'] {
  const { address: host, port, connections, 'ps-socket': fd } = values
  noneBeside('--ps-socket', fd, { '--port': port, '--connections': connections })
  if (fd !== undefined) return { kind: 'fd', fd: inheritedFd('--ps-socket', fd) }
  const given = required('--port', port, "the cache's port, as in --port 9997")
  const { credentials, allowUids: uids } = readCredentials(values)
  return { kind: 'tcp', host, port: wholeNumber('--port', given, 1, 65535), credentials, uids }
}

function readRemote(values: Values): ProxyChoice['remote'] {
  const { snapshot, 'max-memory': most } = values
  const remote = isCriuRemote(values, {
    '--connections': values.connections,
    '--page-server-port': values['page-server-port'],
    '--until running': values.until === 'running',
    '--compress': values.compress !== 'none',
    '--rate-limit': values['rate-limit'],
    '--no-checksum': values['no-checksum'],
  })
  if (!remote) atMostOne({ '--wire ferry': true, '--max-memory': most })
  return remote ? { maxMemory: readMemory({ 'max-memory': most }).maxMemory, snapshot } : undefined
}
