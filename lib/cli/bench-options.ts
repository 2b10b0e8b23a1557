/** The command line of the benchmark. */
import type { ValuesOf } from './common-options.ts'
import { credentialHelp, credentialOptions, readCredentials } from './credential-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { atMostOne, oneOf, wholeMiB, wholeNumber } from './parse.ts'

export const benchOptions = {
  size: { type: 'string', multiple: true },
  runs: { type: 'string', default: '5' },
  memory: { type: 'string', default: 'random' },
  tree: { type: 'string', default: '0' },
  only: { type: 'string', multiple: true },
  json: { type: 'boolean', default: false },
  plot: { type: 'string' },
  place: { type: 'string', default: '/dev/shm' },
  criu: { type: 'string' },
  link: { type: 'string' },
  connections: { type: 'string', default: '1' },
  'long-links': { type: 'boolean', default: false },
  ...credentialOptions,
} as const

const DEFAULT_SIZE = '1G'

/** `ways`: a line each. */
export function benchUsage(ways: readonly { name: string; what: string }[]): string {
  const { runs, memory, tree, place, connections } = benchOptions
  return `usage: npm run bench -- [OPTIONS]

Moves a process with its memory on this host, again and again, and says how long it
stood still: through proxy and cache, and by what a user has without them. As root.

      --size SIZE      memory of the process; may be given again (default: ${DEFAULT_SIZE})
      --runs N         of each way, interleaved (default: ${runs.default})
      --memory KIND    random, zero, text or heap, of a node (default: ${memory.default})
      --tree N         so many child processes more, of 64 KiB each (default: ${tree.default})
      --only WAY       may be given again:
${ways.map(({ name, what }) => `                         ${name.padEnd(13)} ${what}`).join('\n')}
      --json           results as JSON
      --plot FILE      a chart as SVG
      --place DIR      a directory in memory (default: ${place.default})
      --criu PATH      the criu to use
      --link HOST:PORT instead: how fast a cache there takes what is made up here
      --connections N  over how many connections (default: ${connections.default})
      --long-links     instead: the same over links that are simulated here, each with
                       one connection and with four; --size for all of them, as root
  -q, --quiet          no line for each run
  -h, --help           this text               -V, --version

${credentialHelp}

${exitCodeHelp}

example, on two hosts:
  cache --port 9997 -D /run/ferry
  npm run bench -- --link 127.0.0.1:9997 --size 4G`
}

/** What is to be measured, of these kinds of memory and these ways. Throws `USAGE`. */
export function readBenchOptions<Kind extends string, Way extends { name: string }>(
  values: ValuesOf<typeof benchOptions>,
  kinds: readonly Kind[],
  ways: readonly Way[],
) {
  const { link, only, plot, json, place, criu, 'long-links': long } = values
  const sizes = (values.size ?? [DEFAULT_SIZE]).map((size) => wholeMiB('--size', size))
  const kind = oneOf('--memory', values.memory, kinds)
  const common = { sizes, kind, runs: wholeNumber('--runs', values.runs, 1, 1000) }
  atMostOne({ '--link': link, '--long-links': long, '--only, --plot or --json': only ?? plot ?? json })
  if (long) return { common, job: { kind: 'long-links' as const, size: values.size && sizes[0], place } }
  if (link !== undefined) {
    const connections = wholeNumber('--connections', values.connections, 1, 16)
    return { common, job: { kind: 'link' as const, endpoint: link, connections, protection: readCredentials(values) } }
  }
  const names = ways.map(({ name }) => name)
  const chosen = only?.map((name) => oneOf('--only', name, names)) ?? names
  const children = wholeNumber('--tree', values.tree, 0, 1000)
  if (children > 0) atMostOne({ '--tree': values.tree, '--memory heap': kind === 'heap' })
  const moved = ways.filter(({ name }) => chosen.includes(name))
  /** `criu`: the one that is found if undefined. */
  return { common, job: { kind: 'moves' as const, ways: moved, children, criu, place, json, chart: plot } }
}
