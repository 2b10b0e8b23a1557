#!/usr/bin/env node
import { main } from '../lib/cli/main.ts'
import { preCopyCommand, readPreCopyOptions } from '../lib/cli/pre-copy-options.ts'
import { preCopy, withCacheRoute } from '../lib/commands/pre-copy.ts'
import { findCriu } from '../lib/criu/run.ts'
import { settleVerdict } from '../lib/handover/standalone-source.ts'
import { freshId } from '../lib/store/fresh-id.ts'
import { checkNetwork } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

main(preCopyCommand, async ({ values, rest, report, signal }) => {
  const { insecure, job, ...to } = readPreCopyOptions(values, rest)
  await checkNetwork(to.cache.host, to.cache.credentials, insecure)
  const target = { ...to, report, signal }
  if (job.kind === 'settle') return withCacheRoute(target, (route) => settleVerdict(job.settled, route))
  const { criu, id = freshId(), send, ...move } = job
  await preCopy({ ...move, criu: findCriu(criu), id, tuning: tuningOf(send, report) }, target)
})
