/** How long a process stands still when it is moved: our way and the ways that a user has without us, in one run. */
import { extname } from 'node:path'
import { contenders } from '../lib/bench/contenders.ts'
import { benchLongLinks } from '../lib/bench/long-links.ts'
import { benchLink, benchMoves } from '../lib/bench/report.ts'
import { cannotSimulate } from '../lib/bench/simulated.ts'
import { kinds } from '../lib/bench/target-process.ts'
import { benchOptions, benchUsage, readBenchOptions } from '../lib/cli/bench-options.ts'
import { main } from '../lib/cli/main.ts'
import { findCriu } from '../lib/criu/run.ts'
import { Fault } from '../lib/fault.ts'
import { trustedPath } from '../lib/kernel/trusted-path.ts'
import { checkNetwork, parseEndpoint } from '../lib/stream/endpoint.ts'

const commands = {
  node: [process.execPath, ...process.execArgv],
  scripts: import.meta.dirname,
  suffix: extname(import.meta.filename),
}
const ways = contenders(commands)

main({ name: 'bench', usage: benchUsage(ways), options: benchOptions }, async ({ values, signal }) => {
  const { common, job } = readBenchOptions(values, kinds, ways)
  const say = (line: string): void => void (values.quiet || process.stderr.write(`bench: ${line}\n`))
  const options = { ...common, signal, say }
  process.stdout.write(await measured())

  async function measured(): Promise<string> {
    switch (job.kind) {
      case 'long-links': {
        const reason = cannotSimulate()
        if (reason !== undefined) throw new Fault('MISSING', `links cannot be simulated here: ${reason}`)
        return benchLongLinks({ ...options, size: job.size, commands, place: inMemory(job.place) })
      }
      case 'link': {
        const { credentials, allowUids, insecure } = job.protection
        const endpoint = parseEndpoint(job.endpoint, credentials, allowUids)
        if (endpoint.kind === 'tcp') await checkNetwork(endpoint.host, credentials, insecure)
        return benchLink(endpoint, job.connections, options)
      }
      case 'moves': {
        const { ways: contenders, children, json, chart } = job
        const [criu, place] = [findCriu(job.criu), inMemory(job.place)]
        return benchMoves({ ...options, contenders, children, json, chart, criu, place })
      }
    }
  }
})

function inMemory(place: string): string {
  return trustedPath(place, { parent: true, otherwise: 'choose another --place DIR' })
}
