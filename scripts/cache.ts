#!/usr/bin/env node
import { askCache } from '../lib/cache/admin.ts'
import { runCache } from '../lib/cache/server.ts'
import { checkHoldingsOptions, holdingsHelp, holdingsOptions, printHoldings } from '../lib/cli/cache-options.ts'
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
import { inheritedFd, listenFd, listenHelp, listenPort } from '../lib/cli/inherited-fds.ts'
import { main } from '../lib/cli/main.ts'
import { memoryHelp, memoryOf } from '../lib/cli/memory-options.ts'
import { atMostOne, required, timeoutMs } from '../lib/cli/parse.ts'
import { cacheOptions, isRemoteCache, wireHelp } from '../lib/cli/wire-options.ts'
import { findCriu } from '../lib/criu/run.ts'
import { handleRemoteConnection } from '../lib/criu-remote/cache.ts'
import { RemoteRestores } from '../lib/criu-remote/restores.ts'
import { snapshotId } from '../lib/format/names.ts'
import { manualVerdictHelp, manualVerdictOptions } from '../lib/handover/manual-verdict.ts'
import { notify } from '../lib/kernel/notify.ts'
import { checkNetwork, inheritedEndpoint, inheritedListener } from '../lib/stream/endpoint.ts'

const usage = `usage: cache --port N -D DIR [OPTIONS] [-- CRIU OPTIONS]
       cache -D DIR --ls [--json] | --rm ID | --pin ID | --unpin ID | --let-run ID | --drop ID

The image-cache, a daemon on the target host: keeps the snapshots of proxies in memory
for criu restore --stream -D DIR and restore-from-socket, which wait for theirs.
With --action-script DIR/post-restore criu restore takes part in a hand-over.

${listenHelp}
  -D, --dir DIR        made if it is missing; gets streamer-serve.sock, img-cache.sock
      --snapshot ID    the snapshot that criu restore gets (default: the newest sealed)
${holdingsHelp}
${manualVerdictHelp}
      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)
      --timeout SEC    how long a restore waits, an idle chain is safe, and a snapshot that
                       comes or goes may stand still (default: 60)
${memoryHelp}
${wireHelp}
  -q, --quiet          only errors     -h, --help   this text     -V, --version

${[daemonHelp, `${credentialHelp}\n${localUserHelp}`, exitCodeHelp].join('\n\n')}

example, on the target host:
  cache --port 9997 -D /run/ferry &
  criu restore --stream -d -D /run/ferry`

const options = {
  port: { type: 'string' },
  address: { type: 'string', default: '127.0.0.1' },
  dir: { type: 'string', short: 'D' },
  ...cacheOptions,
  ...manualVerdictOptions,
  ...holdingsOptions,
  ...credentialOptions,
  ...localUserOptions,
  ...daemonOptions,
} as const

main({ name: 'cache', usage, options, daemon: { notify } }, async ({ values, rest, ...life }) => {
  const { port, address, dir, snapshot, timeout, insecure, 'ps-socket': psSocket } = values
  const directory = required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  const keeping = checkHoldingsOptions(values)
  const asked = await askCache(directory, values)
  if (asked !== undefined) return asked === 'done' ? undefined : printHoldings(asked, values.json)
  if (!values.restore) atMostOne({ 'a cache without --restore': true, 'criu options': rest.length > 0 })
  const [listener, number] = [listenFd(), listenPort(port, psSocket)]
  const where = listener === undefined ? { host: address, port: number } : inheritedListener(listener)
  const credentials = credentialsOf(values)
  const allowUids = allowedUids(values)
  if (where.port !== undefined) await checkNetwork(where.host, credentials, insecure)
  const peer = psSocket && (await inheritedEndpoint(inheritedFd('--ps-socket', psSocket), insecure))
  await runCache({
    ...where,
    first: peer ? peer.take() : undefined,
    credentials,
    allowUids,
    directory,
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    timeoutMs: timeoutMs(timeout, 60_000),
    ...memoryOf(values),
    ...keeping,
    handler: isRemoteCache(values) ? handleRemoteConnection : undefined,
    openRestores: (script, context) => new RemoteRestores(script, context),
    restore: values.restore ? { criu: findCriu(values.criu), options: rest } : undefined,
    ...life,
  })
})
