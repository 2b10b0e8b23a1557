/** Transfers over simulated links, with one connection and with four. */
import { mkdtempSync, rmSync } from 'node:fs'
import { cpus, loadavg, release } from 'node:os'
import { join } from 'node:path'
import { formatSize } from '../size.ts'
import { Children } from './children.ts'
import { type BenchOptions, interleaved, median, spread } from './interleaved-runs.ts'
import { runLink } from './link-speed.ts'
import { cpuSeconds } from './machine.ts'
import type { Commands } from './ours.ts'
import { type LinkKind, linkKinds, SIMULATED_HOW, simulate, TARGET } from './simulated.ts'

interface LongLinksOptions extends Omit<BenchOptions, 'sizes'> {
  /** Bytes over every link; of each link's own choice if undefined. */
  size: number | undefined
  commands: Commands
  /** A directory on a file system in memory. */
  place: string
}

const COUNTS = [1, 4]
const endpoint = { kind: 'tcp', host: TARGET, port: 9997 } as const

interface Run {
  connections: number
  seconds: number
  /** Processor time of both ends; the program of the simulated link is not counted. */
  cpu: number
}

/** Returns a table. `cannotSimulate` has said nothing. */
export async function benchLongLinks(options: LongLinksOptions): Promise<string> {
  const { runs, kind } = options
  const lines = [
    `${new Date().toISOString().slice(0, 10)}: ${cpus()[0]?.model}, ${cpus().length} cores; Linux ` +
      `${release()}, Node ${process.version}; load before ${loadavg()[0]?.toFixed(1)}`,
    `medians of ${runs} interleaved runs, ${kind} memory, sealed by the cache; x ideal: against size / rate`,
    SIMULATED_HOW,
    row(['link', 'size', 'connections', 'seconds', 'least-most', 'x ideal', 'x one', 'Mbit/s', 'CPU s']),
  ]
  for (const link of linkKinds) lines.push(...(await overLink(link, options)))
  return `${lines.join('\n')}\n`
}

async function overLink(link: LinkKind, options: LongLinksOptions): Promise<string[]> {
  const { commands, place, signal, runs, kind, say } = options
  const bytes = options.size ?? link.bytes
  const folder = mkdtempSync(join(place, 'ferry-bench-'))
  const children = new Children(signal)
  const wire = simulate(link)
  const done: Run[] = []
  try {
    wire.enter('target')
    const [node = '', ...args] = [...commands.node, join(commands.scripts, `cache${commands.suffix}`)]
    const listening = ['--address', TARGET, '--port', `${endpoint.port}`, '--insecure', '--quiet']
    const cache = children.start(node, [...args, ...listening, '-D', folder])
    cache.stderr.resume()
    wire.enter('source')
    for (const connections of interleaved(COUNTS, runs)) {
      signal.throwIfAborted()
      const before = cpuSeconds(process.pid) + cpuSeconds(cache.pid)
      const { transfer } = await runLink(endpoint, connections, bytes, kind, signal)
      const cpu = cpuSeconds(process.pid) + cpuSeconds(cache.pid) - before
      done.push({ connections, seconds: transfer, cpu })
      say(`${link.name}, ${connections} connections: ${formatSize(bytes)} in ${transfer.toFixed(2)} s`)
    }
  } finally {
    await children.end()
    const { carried, lost } = await wire.end()
    say(`${link.name}: ${carried} packets carried, ${lost} lost`)
    rmSync(folder, { recursive: true, force: true })
  }
  return COUNTS.map((connections) => line(link, bytes, connections, done))
}

function line(link: LinkKind, bytes: number, connections: number, done: readonly Run[]): string {
  const of = (count: number): Run[] => done.filter((run) => run.connections === count)
  const seconds = of(connections).map((run) => run.seconds)
  const one = median(of(1).map((run) => run.seconds))
  const middle = median(seconds)
  const ideal = link.rate === undefined ? undefined : (bytes * 8) / (link.rate * 1e6)
  return row([
    link.name,
    formatSize(bytes),
    `${connections}`,
    middle.toFixed(2),
    spread(seconds),
    ideal === undefined ? '' : (middle / ideal).toFixed(2),
    (middle / one).toFixed(2),
    ((bytes * 8) / middle / 1e6).toFixed(0),
    median(of(connections).map((run) => run.cpu)).toFixed(2),
  ])
}

const WIDTHS = [30, 9, 12, 8, 12, 8, 6, 7, 6]

function row(cells: readonly string[]): string {
  return cells.map((cell, index) => (index === 0 ? cell.padEnd(30) : cell.padStart(WIDTHS[index] ?? 0))).join(' ')
}
