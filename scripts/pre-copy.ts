#!/usr/bin/env node
import { main } from '../lib/cli/main.ts'
import { preCopyOptions, preCopyUsage, readPreCopyOptions } from '../lib/cli/pre-copy-options.ts'
import { commandName } from '../lib/command-name.ts'
import { preCopy, settlePreCopy } from '../lib/commands/pre-copy.ts'
import { findCriu } from '../lib/criu/run.ts'
import { freshId } from '../lib/store/fresh-id.ts'
import { checkNetwork } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

const command = { name: commandName('pre-copy'), usage: preCopyUsage, options: preCopyOptions }

main(command, async ({ values, rest, report, signal }) => {
  const { address, port, protection, directory, timeoutMs, job } = readPreCopyOptions(values, rest)
  const { credentials, allowUids: uids, insecure } = protection
  await checkNetwork(address, credentials, insecure)
  const cache = { kind: 'tcp', host: address, port, credentials, uids } as const
  const target = { cache, directory, timeoutMs, report, signal }
  if (job.kind === 'settle') return settlePreCopy(job.settled, target)
  const { criu, id = freshId(), send, ...move } = job
  await preCopy({ ...move, criu: findCriu(criu), id, tuning: tuningOf(send, report) }, target)
})
