/** The options of the benchmark, and its usage text. */
import { credentialHelp, credentialOptions, localUserHelp, localUserOptions } from './credential-options.ts'
import { exitCodeHelp } from './exit-codes.ts'

export const benchOptions = {
  size: { type: 'string', multiple: true },
  runs: { type: 'string', default: '5' },
  memory: { type: 'string', default: 'random' },
  tree: { type: 'string', default: '0' },
  only: { type: 'string', multiple: true },
  json: { type: 'boolean' },
  plot: { type: 'string' },
  place: { type: 'string', default: '/dev/shm' },
  criu: { type: 'string' },
  link: { type: 'string' },
  connections: { type: 'string', default: '1' },
  'long-links': { type: 'boolean' },
  ...credentialOptions,
  ...localUserOptions,
} as const

/** `ways`: a line each. */
export function benchUsage(ways: readonly { name: string; what: string }[]): string {
  return `usage: npm run bench -- [OPTIONS]

Moves a process with its memory on this host, again and again, and says how long it
stood still: through proxy and cache, and by what a user has without them. As root.

      --size SIZE      memory of the process; may be given again (default: 1G)
      --runs N         of each way, interleaved (default: 5)
      --memory KIND    random, zero, text or heap, of a node (default: random)
      --tree N         so many child processes more, of 64 KiB each (default: 0)
      --only WAY       may be given again:
${ways.map(({ name, what }) => `                         ${name.padEnd(13)} ${what}`).join('\n')}
      --json           results as JSON
      --plot FILE      a chart as SVG
      --place DIR      a directory in memory (default: /dev/shm)
      --criu PATH      the criu to use
      --link HOST:PORT instead: how fast a cache there takes what is made up here
      --connections N  over how many connections (default: 1)
      --long-links     instead: the same over links that are simulated here, each with
                       one connection and with four; --size for all of them, as root
  -q, --quiet          no line for each run
  -h, --help           this text               -V, --version

${[`${credentialHelp}\n${localUserHelp}`, exitCodeHelp].join('\n\n')}

example, on two hosts:
  cache --port 9997 -D /run/ferry
  npm run bench -- --link 127.0.0.1:9997 --size 4G`
}
