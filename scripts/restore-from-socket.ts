#!/usr/bin/env node
import { main } from '../lib/cli/main.ts'
import { readManualVerdict } from '../lib/cli/manual-verdict-options.ts'
import { readRestoreOptions, restoreCommand } from '../lib/cli/restore-options.ts'
import { restoreToDirectory, restoreToListener, restoreTree } from '../lib/commands/restore.ts'
import { findCriu } from '../lib/criu/run.ts'
import { HOLD_DIRECTORY } from '../lib/defaults.ts'
import { giveManualVerdict, holdSocket } from '../lib/handover/manual-verdict.ts'
import { checkNetwork, connectEndpoint, parseEndpoint, stdoutLink } from '../lib/stream/endpoint.ts'

main(restoreCommand, async ({ values, rest, report, signal }) => {
  const verdict = readManualVerdict(values)
  if (verdict !== undefined) return giveManualVerdict(values.dir ?? HOLD_DIRECTORY, holdSocket(verdict.id), verdict)
  const choice = readRestoreOptions(values, rest)
  const { job, from, fromStdin, credentials, allowUids, insecure, ...common } = choice
  const criu = job.kind === 'tree' ? findCriu(job.criu) : ''
  const endpoint = parseEndpoint(from, credentials, allowUids)
  if (endpoint.kind === 'tcp') await checkNetwork(endpoint.host, credentials, insecure)
  const link = await connectEndpoint(endpoint, common.timeoutMs, signal)
  const options = { ...common, ...(fromStdin && { replyLink: stdoutLink }), report, signal }
  switch (job.kind) {
    case 'tree':
      return restoreTree(criu, job.criuOptions, link, options)
    case 'listener':
      return restoreToListener(link, options)
    case 'directory':
      return restoreToDirectory(job.path, link, options)
  }
})
