#!/usr/bin/env node
import {
  allowedUids,
  credentialHelp,
  credentialOptions,
  credentialsOf,
  localUserHelp,
  localUserOptions,
} from '../lib/cli/credential-options.ts'
import { exitCodeHelp } from '../lib/cli/exit-codes.ts'
import { main } from '../lib/cli/main.ts'
import { memoryHelp, memoryOf, memoryOptions } from '../lib/cli/memory-options.ts'
import { atMostOne, required, timeoutMs } from '../lib/cli/parse.ts'
import { restoreToDirectory, restoreToListener, restoreTree } from '../lib/commands/restore.ts'
import { findCriu } from '../lib/criu/run.ts'
import { snapshotId } from '../lib/format/names.ts'
import {
  giveManualVerdict,
  manualVerdictHelp,
  manualVerdictOf,
  manualVerdictOptions,
} from '../lib/handover/manual-verdict.ts'
import { HOLD_DIRECTORY, holdSocket } from '../lib/handover/standalone-target.ts'
import { checkNetwork, connectEndpoint, parseEndpoint, stdoutLink } from '../lib/stream/endpoint.ts'

const usage = `usage: restore-from-socket [--from ENDPOINT] [OPTIONS] [-- CRIU OPTIONS]
       restore-from-socket [--from ENDPOINT] --listen -D DIR [OPTIONS]
       restore-from-socket [--from ENDPOINT] --to-dir DIR [OPTIONS]
       restore-from-socket [-D DIR] --let-run ID | --drop ID

Takes one image stream, verifies it to its end, and only then restores it with
criu restore --stream -d, offers it to a criu restore --stream that somebody else
starts, or writes a directory that criu restore -D accepts. A process that is handed
over (dump-to-stdout --via, or a cache) is held, restored, until its source lets go.

      --from ENDPOINT  - (stdin, the default), HOST:PORT, unix:PATH or fd:N; a cache
                       is asked for a snapshot, anything else just sends one
      --snapshot ID    which snapshot of a cache (default: the newest sealed)
      --listen         offer streamer-serve.sock in -D DIR and wait for a criu
      --to-dir DIR     write plain images; DIR appears when all is verified
${manualVerdictHelp}
  -D, --dir DIR        work directory (default: a private temporary one)
      --timeout SEC    how long to wait for a connection and a snapshot (default: 60)
${memoryHelp}
      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)
  -v, --verbose        say what happens        -q, --quiet    only errors
  -h, --help           this text               -V, --version

${[`${credentialHelp}\n${localUserHelp}`, exitCodeHelp].join('\n\n')}

example, on the target host:
  restore-from-socket --from 127.0.0.1:9997 -- --tcp-established`

const options = {
  from: { type: 'string', default: '-' },
  snapshot: { type: 'string' },
  listen: { type: 'boolean' },
  'to-dir': { type: 'string' },
  dir: { type: 'string', short: 'D' },
  timeout: { type: 'string' },
  ...memoryOptions,
  criu: { type: 'string' },
  ...manualVerdictOptions,
  ...credentialOptions,
  ...localUserOptions,
} as const

main({ name: 'restore-from-socket', usage, options }, async ({ values, rest, report, signal }) => {
  const { from, snapshot, listen, dir, timeout, criu, 'to-dir': toDir } = values
  const said = manualVerdictOf(values)
  if (said !== undefined) return giveManualVerdict(dir ?? HOLD_DIRECTORY, holdSocket(said.id), said)
  atMostOne({ '--listen': listen, '--to-dir': toDir, 'criu options': rest.length > 0 })
  atMostOne({ '--dir': dir, '--to-dir': toDir })
  if (listen === true) required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  const common = {
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    directory: dir,
    ...memoryOf(values),
    timeoutMs: timeoutMs(timeout, 60_000),
    ...(from === '-' && { replyLink: stdoutLink }),
    report,
    signal,
  }
  const restores = listen !== true && toDir === undefined
  const program = restores ? findCriu(criu) : ''
  const credentials = credentialsOf(values)
  const endpoint = parseEndpoint(from, credentials, allowedUids(values))
  if (endpoint.kind === 'tcp') await checkNetwork(endpoint.host, credentials, values.insecure)
  const link = await connectEndpoint(endpoint, common.timeoutMs, signal)
  if (toDir !== undefined) return restoreToDirectory(toDir, link, common)
  if (listen === true) return restoreToListener(link, common)
  await restoreTree(program, rest, link, common)
})
