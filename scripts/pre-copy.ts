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
import { atMostOne, oneOf, required, timeoutMs, wholeNumber } from '../lib/cli/parse.ts'
import { preCopyHelp, preCopyOptions, ruleOf } from '../lib/cli/pre-copy-options.ts'
import { sendChoiceOf, sendHelp, sendOptions } from '../lib/cli/send-options.ts'
import { preCopy, settlePreCopy } from '../lib/commands/pre-copy.ts'
import { findCriu } from '../lib/criu/run.ts'
import { untils } from '../lib/format/enums.ts'
import { snapshotId } from '../lib/format/names.ts'
import { freshId } from '../lib/store/fresh-id.ts'
import { checkNetwork } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

const usage = `usage: pre-copy -t PID --address HOST --port N [OPTIONS] [-- CRIU OPTIONS]
       pre-copy --settle ID --address HOST --port N [-D DIR]

Moves the process tree PID to the image-cache at HOST: copies its memory with criu
pre-dump while it runs, then again what it changed, and so on, and stops it only for
what is left. Needs a kernel that tracks changed pages (CONFIG_MEM_SOFT_DIRTY).

  -t, --tree PID       the process, with its children
      --address HOST   where the cache is (default: 127.0.0.1)
      --port N         the cache's port
${preCopyHelp}

      --until sealed   let the process go when the cache has it all (the default)
      --until running  let it go when the target has restored it and holds it
      --timeout SEC    how long the cache may be out of reach, and may take to agree,
                       and criu may say nothing (default: 60)
      --settle ID      tell the cache what became of the process of an earlier one
  -D, --dir DIR        where verdicts are kept (default: /run/criu-ferry)
      --snapshot ID    name of the snapshot (default: time, host, random)
      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)
${sendHelp}
  -v, --verbose        say what happens        -q, --quiet    only errors
  -h, --help           this text               -V, --version

${[`${credentialHelp}\n${localUserHelp}`, exitCodeHelp].join('\n\n')}

example, on the source host:
  pre-copy -v -t $PID --port 9997 --downtime-goal 200`

const options = {
  tree: { type: 'string', short: 't' },
  address: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string' },
  until: { type: 'string', default: 'sealed' },
  timeout: { type: 'string' },
  settle: { type: 'string' },
  dir: { type: 'string', short: 'D' },
  snapshot: { type: 'string' },
  criu: { type: 'string' },
  ...preCopyOptions,
  ...sendOptions,
  ...credentialOptions,
  ...localUserOptions,
} as const

main({ name: 'pre-copy', usage, options }, async ({ values, rest, report, signal }) => {
  const { tree, address, dir, snapshot, settle, insecure, criu } = values
  const port = wholeNumber('--port', required('--port', values.port, "the cache's port"), 1, 65535)
  atMostOne({ '--tree': tree, '--settle': settle })
  const credentials = credentialsOf(values)
  await checkNetwork(address, credentials, insecure)
  const cache = { kind: 'tcp', host: address, port, credentials, uids: allowedUids(values) } as const
  const way = { cache, directory: dir, timeoutMs: timeoutMs(values.timeout, 60_000), report, signal }
  if (settle !== undefined) return settlePreCopy(snapshotId(settle, 'USAGE'), way)
  const pid = wholeNumber('--tree', required('--tree', tree, 'pre-copy --help'), 1, 2 ** 22)
  const id = snapshot === undefined ? freshId() : snapshotId(snapshot, 'USAGE')
  const agreed = { id, until: oneOf('--until', values.until, untils), tuning: tuningOf(sendChoiceOf(values), report) }
  await preCopy({ criu: findCriu(criu), pid, criuOptions: rest, rule: ruleOf(values), ...agreed }, way)
})
