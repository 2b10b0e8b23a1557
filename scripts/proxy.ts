#!/usr/bin/env node
import { credentialHelp, credentialOptions, credentialsOf } from '../lib/cli/credentials.ts'
import { exitCodeHelp } from '../lib/cli/exit.ts'
import { main } from '../lib/cli/main.ts'
import { required, timeoutMs, wholeNumber } from '../lib/cli/values.ts'
import { snapshotId } from '../lib/format/names.ts'
import { proxy } from '../lib/role/proxy.ts'
import { checkNetwork } from '../lib/stream/endpoint.ts'

const usage = `usage: proxy --address HOST --port N -D DIR [OPTIONS]

The image-proxy, a daemon on the source host: whoever runs criu dump --stream -D DIR
here is forwarded to the image-cache at HOST. One snapshot per dump.

      --address HOST   where the cache is (default: 127.0.0.1)
      --port N         the cache's port
  -D, --dir DIR        directory for streamer-capture.sock; made if it is missing
      --snapshot ID    name of the snapshot (default: time, host, random)
      --timeout SEC    how long the cache may be out of reach (default: 60)
  -q, --quiet          only errors
  -h, --help           this text               -V, --version

${credentialHelp}

${exitCodeHelp}

example, on the source host:
  proxy --address 127.0.0.1 --port 9997 -D /run/ferry &
  criu dump --stream -t $PID -D /run/ferry`

const options = {
  address: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string' },
  dir: { type: 'string', short: 'D' },
  snapshot: { type: 'string' },
  timeout: { type: 'string' },
  ...credentialOptions,
} as const

main({ name: 'proxy', usage, options, daemon: true }, async ({ values, report, signal }) => {
  const { address, port, dir, snapshot, timeout, insecure } = values
  const credentials = credentialsOf(values)
  const cachePort = wholeNumber('--port', required('--port', port, "the cache's port, as in --port 9997"), 1, 65535)
  await checkNetwork(address, credentials, insecure)
  await proxy({
    cache: { kind: 'tcp', host: address, port: cachePort, credentials },
    directory: required('--dir', dir, 'the directory that criu dump --stream gets as -D'),
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    timeoutMs: timeoutMs(timeout, 60_000),
    report,
    signal,
  })
})
