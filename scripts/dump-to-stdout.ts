#!/usr/bin/env node
import { dumpCommand, readDumpOptions } from '../lib/cli/dump-options.ts'
import { main } from '../lib/cli/main.ts'
import { dumpFromDirectory, dumpFromListener, dumpTree } from '../lib/commands/dump.ts'
import { handOverTree, withShellRoute } from '../lib/commands/dump-via.ts'
import { findCriu } from '../lib/criu/run.ts'
import { settleVerdict } from '../lib/handover/standalone-source.ts'
import { freshId } from '../lib/store/fresh-id.ts'
import { stdoutLink } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

main(dumpCommand, async ({ values, rest, report, signal }) => {
  const { job, id = freshId(), send, ...common } = readDumpOptions(values, rest)
  const options = { ...common, id, tuning: tuningOf(send), report, signal }
  switch (job.kind) {
    case 'tree':
      return dumpTree({ ...job, criu: findCriu(job.criu) }, stdoutLink(), options)
    case 'hand-over':
      return handOverTree({ ...job, criu: findCriu(job.criu) }, job.command, { ...options, until: job.until })
    case 'listener':
      return dumpFromListener(stdoutLink(), options)
    case 'directory':
      return dumpFromDirectory(job.path, stdoutLink(), options)
    case 'settle':
      return withShellRoute(job.command, options, (route) => settleVerdict(job.settled, route))
  }
})
