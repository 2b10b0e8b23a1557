/** How long a process stands still when it is moved: our way and the ways that a user has without us, in one run. */
import { extname } from 'node:path'
import { contenders } from '../lib/bench/contenders.ts'
import { benchLongLinks } from '../lib/bench/long-links.ts'
import { benchLink, benchMoves } from '../lib/bench/report.ts'
import { cannotSimulate } from '../lib/bench/simulated.ts'
import { kinds } from '../lib/bench/target-process.ts'
import { benchOptions, benchUsage } from '../lib/cli/bench-options.ts'
import { allowedUids, credentialsOf } from '../lib/cli/credential-options.ts'
import { main } from '../lib/cli/main.ts'
import { atMostOne, oneOf, wholeMiB, wholeNumber } from '../lib/cli/parse.ts'
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
  const { link, only, plot, json = false, quiet = false } = values
  const say = (line: string): void => void (quiet || process.stderr.write(`bench: ${line}\n`))
  const sizes = (values.size ?? ['1G']).map((size) => wholeMiB('--size', size))
  const kind = oneOf('--memory', values.memory, kinds)
  const common = { sizes, kind, runs: wholeNumber('--runs', values.runs, 1, 1000), signal, say }
  const long = values['long-links']
  const inPlace = () => ({
    place: trustedPath(values.place, { parent: true, otherwise: 'choose another --place DIR' }),
  })
  atMostOne({ '--link': link, '--long-links': long, '--only, --plot or --json': only ?? plot ?? json })
  if (long) {
    const reason = cannotSimulate()
    if (reason !== undefined) throw new Fault('MISSING', `links cannot be simulated here: ${reason}`)
    const size = values.size === undefined ? undefined : sizes[0]
    return void process.stdout.write(await benchLongLinks({ ...common, size, commands, ...inPlace() }))
  }
  if (link !== undefined) {
    const endpoint = parseEndpoint(link, credentialsOf(values), allowedUids(values))
    if (endpoint.kind === 'tcp') await checkNetwork(endpoint.host, endpoint.credentials, values.insecure)
    return void process.stdout.write(
      await benchLink(endpoint, wholeNumber('--connections', values.connections, 1, 16), common),
    )
  }
  const names = ways.map(({ name }) => name)
  const chosen = only?.map((name) => oneOf('--only', name, names)) ?? names
  const children = wholeNumber('--tree', values.tree, 0, 1000)
  if (children > 0) atMostOne({ '--tree': values.tree, '--memory heap': kind === 'heap' })
  const moved = { contenders: ways.filter(({ name }) => chosen.includes(name)), criu: findCriu(values.criu), children }
  process.stdout.write(await benchMoves({ ...common, ...moved, ...inPlace(), json, chart: plot }))
})
