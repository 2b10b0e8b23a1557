#!/usr/bin/env node
import { exitCodeHelp } from '../lib/cli/exit-codes.ts'
import { main } from '../lib/cli/main.ts'
import { atMostOne, oneOf, required, wholeNumber } from '../lib/cli/parse.ts'
import { sendChoiceOf, sendHelp, sendOptions } from '../lib/cli/send-options.ts'
import { viaHelp, viaOptions, viaPatience } from '../lib/cli/via-options.ts'
import { dumpFromDirectory, dumpFromListener, dumpTree } from '../lib/commands/dump.ts'
import { handOverTree, settleVia } from '../lib/commands/dump-via.ts'
import { findCriu } from '../lib/criu/run.ts'
import { untils } from '../lib/format/enums.ts'
import { snapshotId } from '../lib/format/names.ts'
import { freshId } from '../lib/store/fresh-id.ts'
import { stdoutLink } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

const usage = `usage: dump-to-stdout -t PID [--via COMMAND] [OPTIONS] [-- CRIU OPTIONS]
       dump-to-stdout --listen -D DIR [OPTIONS]
       dump-to-stdout --from-dir DIR [OPTIONS]
       dump-to-stdout --settle ID --via COMMAND [-D DIR]

Writes one image stream to stdout: of the process tree PID, which criu dump
freezes, of a criu dump --stream that somebody else starts, or of a directory
of images. criu kills the tree once its images are written; it runs on if
anything fails before that.

  -t, --tree PID       dump this process and its children with criu dump --stream
      --listen         offer streamer-capture.sock in -D DIR and wait for a criu
      --from-dir DIR   stream the images that criu dump -D left in DIR, and its parents' pages
${viaHelp}
  -D, --dir DIR        work directory (default: a private temporary one)
      --snapshot ID    name of the snapshot (default: time, host, random)
      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)
${sendHelp}
  -v, --verbose        say what happens        -q, --quiet    only errors
  -h, --help           this text               -V, --version

${exitCodeHelp}

example, on the source host:
  dump-to-stdout -t $PID | ssh host restore-from-socket --from -
  dump-to-stdout -t $PID --via 'ssh host restore-from-socket --from -'`

const options = {
  tree: { type: 'string', short: 't' },
  listen: { type: 'boolean' },
  'from-dir': { type: 'string' },
  dir: { type: 'string', short: 'D' },
  snapshot: { type: 'string' },
  criu: { type: 'string' },
  ...viaOptions,
  ...sendOptions,
} as const

main({ name: 'dump-to-stdout', usage, options }, async ({ values, rest, report, signal }) => {
  const { tree, listen, dir, criu, snapshot, via, settle, until, 'from-dir': fromDir } = values
  atMostOne({ '--tree': tree, '--listen': listen, '--from-dir': fromDir, '--settle': settle })
  atMostOne({ '--dir': dir, '--from-dir': fromDir })
  if (tree === undefined) atMostOne({ '--listen or --from-dir': true, 'criu options': rest.length > 0 })
  const patience = viaPatience(values, tree)
  const id = snapshot === undefined ? freshId() : snapshotId(snapshot, 'USAGE')
  const tuning = tuningOf(sendChoiceOf(values, 'dump-to-stdout'))
  const common = { id, directory: dir, tuning, timeoutMs: patience, report, signal }
  if (settle !== undefined) {
    const command = required('--via', via, 'the command that leads to its target')
    atMostOne({ '--settle': true, '--until or --snapshot': until ?? snapshot })
    return settleVia(snapshotId(settle, 'USAGE'), command, common)
  }
  if (fromDir !== undefined) return dumpFromDirectory(fromDir, stdoutLink(), common)
  if (listen === true) {
    required('--dir', dir, 'the directory that criu dump --stream gets as -D')
    return dumpFromListener(stdoutLink(), common)
  }
  const pid = wholeNumber('--tree', required('--tree', tree, 'dump-to-stdout --help'), 1, 2 ** 22)
  if (via === undefined) return dumpTree(findCriu(criu), pid, rest, stdoutLink(), common)
  await handOverTree(findCriu(criu), pid, rest, via, { ...common, until: oneOf('--until', until ?? 'running', untils) })
})
