/** How long a process stands still when it is moved: our way and the ways that a user has without us, in one run. */
import { extname, join } from 'node:path'
import { benchLink, benchMoves } from '../lib/bench/bench.ts'
import { contenders } from '../lib/bench/contenders.ts'
import { kinds } from '../lib/bench/memory.ts'
import { credentialHelp, credentialOptions, credentialsOf } from '../lib/cli/credentials.ts'
import { exitCodeHelp } from '../lib/cli/exit.ts'
import { main } from '../lib/cli/main.ts'
import { atMostOne, oneOf, wholeMiB, wholeNumber } from '../lib/cli/values.ts'
import { findCriu } from '../lib/role/criu.ts'
import { checkNetwork, parseEndpoint } from '../lib/stream/endpoint.ts'

const ways = contenders({
  node: [process.execPath, ...process.execArgv],
  scripts: import.meta.dirname,
  suffix: extname(import.meta.filename),
})

const usage = `usage: npm run bench -- [OPTIONS]

Moves a process with its memory on this host, again and again, and says how long it
stood still: through proxy and cache, and by what a user has without them. As root.

      --size SIZE      memory of the process; may be given again (default: 1G)
      --runs N         of each way, interleaved (default: 5)
      --memory KIND    random, zero or text (default: random)
      --only WAY       may be given again:
${ways.map(({ name, what }) => `                         ${name.padEnd(13)} ${what}`).join('\n')}
      --json           results as JSON
      --plot FILE      a chart as SVG
      --place DIR      a directory in memory (default: /dev/shm)
      --criu PATH      the criu to use
      --link HOST:PORT instead: how fast a cache there takes what is made up here
      --connections N  over how many connections (default: 1)
  -q, --quiet          no line for each run
  -h, --help           this text               -V, --version

${[credentialHelp, exitCodeHelp].join('\n\n')}

example, on two hosts:
  cache --port 9997 -D /run/ferry
  npm run bench -- --link 127.0.0.1:9997 --size 4G`

const options = {
  size: { type: 'string', multiple: true },
  runs: { type: 'string', default: '5' },
  memory: { type: 'string', default: 'random' },
  only: { type: 'string', multiple: true },
  json: { type: 'boolean' },
  plot: { type: 'string' },
  place: { type: 'string', default: '/dev/shm' },
  criu: { type: 'string' },
  link: { type: 'string' },
  connections: { type: 'string', default: '1' },
  ...credentialOptions,
} as const

main({ name: 'bench', usage, options }, async ({ values, signal }) => {
  const { link, only, plot, place, json = false, quiet = false } = values
  const say = (line: string): void => void (quiet || process.stderr.write(`bench: ${line}\n`))
  const sizes = (values.size ?? ['1G']).map((size) => wholeMiB('--size', size))
  const kind = oneOf('--memory', values.memory, kinds)
  const common = { sizes, kind, runs: wholeNumber('--runs', values.runs, 1, 1000), signal, say }
  if (link !== undefined) atMostOne({ '--link': link, '--only, --plot or --json': only ?? plot ?? json })
  if (link !== undefined) {
    const endpoint = parseEndpoint(link, credentialsOf(values))
    if (endpoint.kind === 'tcp') await checkNetwork(endpoint.host, endpoint.credentials, values.insecure)
    return void process.stdout.write(
      await benchLink(endpoint, wholeNumber('--connections', values.connections, 1, 16), common),
    )
  }
  const names = ways.map(({ name }) => name)
  const chosen = only?.map((name) => oneOf('--only', name, names)) ?? names
  const script = join(
    import.meta.dirname,
    ...(extname(import.meta.filename) === '.js' ? ['..'] : []),
    '..',
    'fixtures',
    'memory.pl',
  )
  const moved = { contenders: ways.filter(({ name }) => chosen.includes(name)), criu: findCriu(values.criu), script }
  process.stdout.write(await benchMoves({ ...common, ...moved, place, json, chart: plot }))
})
