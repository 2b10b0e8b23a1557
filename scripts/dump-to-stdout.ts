#!/usr/bin/env node
import { dumpCommand, readDumpOptions } from '../lib/cli/dump-options.ts'
import { main } from '../lib/cli/main.ts'
import { dumpFromDirectory, dumpFromListener, dumpTree } from '../lib/commands/dump.ts'
import { handOverTree, settleVia } from '../lib/commands/dump-via.ts'
import { findCriu } from '../lib/criu/run.ts'
import { freshId } from '../lib/store/fresh-id.ts'
import { stdoutLink } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

main(dumpCommand, async ({ values, rest, report, signal }) => {
  const { job, id = freshId(), send, ...common } = readDumpOptions(values, rest)
  const options = { ...common, id, tuning: tuningOf(send), report, signal }
  switch (job.kind) {
    case 'tree':
      return dumpTree(findCriu(job.criu), job.pid, job.criuOptions, stdoutLink(), options)
    case 'hand-over':
      return handOverTree(findCriu(job.criu), job.pid, job.criuOptions, job.command, { ...options, until: job.until })
    case 'listener':
      return dumpFromListener(stdoutLink(), options)
    case 'directory':
      return dumpFromDirectory(job.path, stdoutLink(), options)
    case 'settle':
      return settleVia(job.settled, job.command, options)
  }
})
