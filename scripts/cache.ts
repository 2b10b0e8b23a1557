#!/usr/bin/env node
import { credentialHelp, credentialOptions, credentialsOf } from '../lib/cli/credentials.ts'
import { exitCodeHelp } from '../lib/cli/exit.ts'
import { main } from '../lib/cli/main.ts'
import { maxMemory, required, timeoutMs, wholeNumber } from '../lib/cli/values.ts'
import { snapshotId } from '../lib/format/names.ts'
import { cache } from '../lib/role/cache.ts'
import { checkNetwork } from '../lib/stream/endpoint.ts'

const usage = `usage: cache --port N -D DIR [OPTIONS]

The image-cache, a daemon on the target host: takes snapshots from proxies, keeps
them in memory, and hands them to criu restore --stream -D DIR and to
restore-from-socket. A restore that comes before its snapshot waits for it.

      --port N         port to listen on; 0: the kernel chooses, and it is printed
      --address HOST   address to listen on (default: 127.0.0.1)
  -D, --dir DIR        directory for streamer-serve.sock; made if it is missing
      --snapshot ID    the snapshot that criu restore gets (default: the newest sealed)
      --timeout SEC    how long a restore may wait for its snapshot (default: 60)
      --max-memory SZ  most memory for images (default: 80 % of this machine's)
  -q, --quiet          only errors
  -h, --help           this text               -V, --version

${credentialHelp}

${exitCodeHelp}

example, on the target host:
  cache --port 9997 -D /run/ferry &
  criu restore --stream -d -D /run/ferry`

const options = {
  port: { type: 'string' },
  address: { type: 'string', default: '127.0.0.1' },
  dir: { type: 'string', short: 'D' },
  snapshot: { type: 'string' },
  timeout: { type: 'string' },
  'max-memory': { type: 'string' },
  ...credentialOptions,
} as const

main({ name: 'cache', usage, options, daemon: true }, async ({ values, report, signal }) => {
  const { port, address, dir, snapshot, timeout, insecure } = values
  const credentials = credentialsOf(values)
  await checkNetwork(address, credentials, insecure)
  await cache({
    host: address,
    port: wholeNumber('--port', required('--port', port, 'as in --port 9997'), 0, 65535),
    credentials,
    directory: required('--dir', dir, 'the directory that criu restore --stream gets as -D'),
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    timeoutMs: timeoutMs(timeout, 60_000),
    maxMemory: maxMemory(values['max-memory']),
    report,
    signal,
  })
})
