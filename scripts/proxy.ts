#!/usr/bin/env node
import {
  allowedUids,
  credentialHelp,
  credentialOptions,
  credentialsOf,
  localUserHelp,
  localUserOptions,
} from '../lib/cli/credential-options.ts'
import { daemonHelp, daemonOptions } from '../lib/cli/daemon.ts'
import { exitCodeHelp } from '../lib/cli/exit-codes.ts'
import { inheritedFd } from '../lib/cli/inherited-fds.ts'
import { main } from '../lib/cli/main.ts'
import { noneBeside, oneOf, portOf, required, timeoutMs, wholeNumber } from '../lib/cli/parse.ts'
import { sendChoiceOf, sendHelp, sendOptions } from '../lib/cli/send-options.ts'
import { proxyWireHelp, proxyWireOptions, remoteProxyOf } from '../lib/cli/wire-options.ts'
import { runProxy } from '../lib/commands/proxy.ts'
import { RemoteDelivery } from '../lib/criu-remote/proxy.ts'
import { untils } from '../lib/format/enums.ts'
import { snapshotId } from '../lib/format/names.ts'
import { MOST_CONNECTIONS } from '../lib/format/stripes.ts'
import { notify } from '../lib/kernel/notify.ts'
import { ferryDelivery } from '../lib/precopy/ferry-delivery.ts'
import { checkNetwork, type Endpoint, inheritedEndpoint } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

const usage = `usage: proxy --address HOST --port N -D DIR [OPTIONS]

The image-proxy, a daemon on the source host: whoever runs criu dump --stream -D DIR
here is forwarded to the image-cache at HOST. With --action-script DIR/post-dump
criu kills the process only when the cache agrees.

      --address HOST, --port N  where the cache is (default: 127.0.0.1)
      --connections N  TCP connections for each snapshot, 1 to 16 (default: 1)
      --ps-socket FD   instead: a socket that is connected to the cache, for one snapshot
  -D, --dir DIR        made if it is missing; gets streamer-capture.sock, img-proxy.sock
      --page-server-port N  also take what criu pre-dump and dump --track-mem send to
                       --page-server --address 127.0.0.1 --port N: rounds before a dump
      --snapshot ID    name of the snapshot (default: time, host, random)
      --until WHAT     sealed: let the process go when the cache has it all (the default);
                       running: when the target has restored it and holds it
      --timeout SEC    how long the cache may be out of reach, or may take, and how long a
                       criu may say nothing (default: 60)
${sendHelp}
${proxyWireHelp}
  -q, --quiet          only errors     -h, --help   this text     -V, --version

${[daemonHelp, `${credentialHelp}\n${localUserHelp}`, exitCodeHelp].join('\n\n')}

example, on the source host:
  proxy --address 127.0.0.1 --port 9997 -D /run/ferry &
  criu dump --stream -t $PID -D /run/ferry --action-script /run/ferry/post-dump`

const options = {
  address: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string' },
  dir: { type: 'string', short: 'D' },
  'page-server-port': { type: 'string' },
  snapshot: { type: 'string' },
  timeout: { type: 'string' },
  ...sendOptions,
  ...proxyWireOptions,
  ...credentialOptions,
  ...localUserOptions,
  ...daemonOptions,
} as const

main({ name: 'proxy', usage, options, daemon: { notify } }, async ({ values, report, signal, onStatus }) => {
  const { address, port, dir, snapshot, timeout, insecure, 'ps-socket': psSocket } = values
  const directory = required('--dir', dir, 'the directory that criu dump --stream gets as -D')
  const remote = remoteProxyOf(values)
  const id = snapshot === undefined || remote !== undefined ? undefined : snapshotId(snapshot, 'USAGE')
  noneBeside('--ps-socket', psSocket, { '--port': port, '--connections': values.connections })
  const connections = wholeNumber('--connections', values.connections ?? '1', 1, MOST_CONNECTIONS)
  const cache =
    psSocket === undefined ? await onPort() : await inheritedEndpoint(inheritedFd('--ps-socket', psSocket), insecure)
  const how = { until: oneOf('--until', values.until, untils), tuning: tuningOf(sendChoiceOf(values), report) }
  const agreed = { cache, connections, ...how, timeoutMs: timeoutMs(timeout, 60_000) }
  const delivery = remote ? new RemoteDelivery({ ...agreed, ...remote, snapshot }) : ferryDelivery(agreed)
  const pagePort = portOf('--page-server-port', values['page-server-port'])
  await runProxy({ delivery, pagePort, directory, id, report, signal, onStatus })

  async function onPort(): Promise<Endpoint> {
    const number = wholeNumber('--port', required('--port', port, "the cache's port, as in --port 9997"), 1, 65535)
    const credentials = credentialsOf(values)
    await checkNetwork(address, credentials, insecure)
    return { kind: 'tcp', host: address, port: number, credentials, uids: allowedUids(values) }
  }
})
