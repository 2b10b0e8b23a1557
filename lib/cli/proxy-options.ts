/** The command line of proxy. */
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { untils } from '../format/enums.ts'
import { MOST_CONNECTIONS } from '../format/stripes.ts'
import { daemonCommonHelp, readSnapshot, snapshotHelp, type ValuesOf } from './common-options.ts'
import { credentialHelp } from './credential-options.ts'
import { daemonHelp, daemonOptions } from './daemon.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { inheritedFd } from './inherited-fds.ts'
import { memoryOptions, readMemory } from './memory-options.ts'
import { atMostOne, noneBeside, oneOf, portOf, required, timeoutMs, wholeNumber } from './parse.ts'
import { readSendOptions } from './send-options.ts'
import {
  agreementHelp,
  cacheAddressHelp,
  readCacheEndpoint,
  sendToCacheHelp,
  toCacheOptions,
} from './to-cache-options.ts'
import { isCriuRemote, wireHelp, wireOption } from './wire-option.ts'

export const proxyOptions = {
  connections: { type: 'string' },
  'ps-socket': { type: 'string' },
  dir: { type: 'string', short: 'D' },
  'page-server-port': { type: 'string' },
  ...toCacheOptions,
  ...wireOption,
  'max-memory': memoryOptions['max-memory'],
  ...daemonOptions,
} as const

const DEFAULT_CONNECTIONS = '1'

const proxy = commandName('proxy')

const usage = `usage: ${proxy} --address HOST --port N -D DIR [OPTIONS]

The image-proxy, a daemon on the source host. It forwards what criu dump --stream -D DIR
dumps here to the image-cache at HOST. With --action-script DIR/post-dump criu kills the
process only when the cache agrees.

${cacheAddressHelp}
      --connections N  TCP connections for each snapshot, 1 to ${MOST_CONNECTIONS} (default: ${DEFAULT_CONNECTIONS})
      --ps-socket FD   instead of --port: FD is a socket that is connected to the cache, for
                       one snapshot
  -D, --dir DIR        made if it is missing; gets streamer-capture.sock and img-proxy.sock
      --page-server-port N
                       also take rounds before a dump, from criu pre-dump and criu dump
                       --track-mem with --page-server --address 127.0.0.1 --port N;
                       0: the kernel chooses the port, and it is printed
${snapshotHelp}
${agreementHelp}
${sendToCacheHelp}
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

export const proxyCommand = { name: proxy, usage, options: proxyOptions, daemon: true as const }

type Values = ValuesOf<typeof proxyOptions>

/** What proxy is to do. `criuOptions`: what follows `--`; a proxy starts no criu. Throws `USAGE`. */
export function readProxyOptions(values: Values, criuOptions: readonly string[] = []) {
  if (criuOptions.length > 0) {
    throw new Fault('USAGE', `${proxy} starts no criu: it takes no criu options`, { hint: 'give them to criu dump' })
  }
  const { dir, insecure, until, connections = DEFAULT_CONNECTIONS, timeout } = values
  const directory = required('--dir', dir, 'the directory that criu dump --stream gets as -D')
  const remote = readRemote(values)
  return {
    directory,
    remote,
    /** A fresh one for each snapshot if undefined. */
    id: remote === undefined ? readSnapshot(values) : undefined,
    cache: readCache(values),
    insecure,
    agreed: {
      until: oneOf('--until', until, untils),
      connections: wholeNumber('--connections', connections, 1, MOST_CONNECTIONS),
      timeoutMs: timeoutMs(timeout),
    },
    send: readSendOptions(values),
    pagePort: portOf('--page-server-port', values['page-server-port']),
  }
}

function readCache(values: Values) {
  const { port, connections, 'ps-socket': fd } = values
  noneBeside('--ps-socket', fd, { '--port': port, '--connections': connections })
  return fd === undefined ? readCacheEndpoint(values) : { kind: 'fd' as const, fd: inheritedFd('--ps-socket', fd) }
}

/** For the wire of `criu --remote`, where the id may be any text. */
function readRemote(values: Values) {
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
  return remote ? { maxMemory: readMemory(values).maxMemory, snapshot } : undefined
}
