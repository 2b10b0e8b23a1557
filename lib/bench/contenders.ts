/**
 * The ways to move a process on one host, each from the start of criu dump until criu restore has let the tasks run:
 * ours, and what a user has without us. All of them keep images in memory only.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, readdirSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { type Commands, ours } from './ours.ts'
import {
  type Contender,
  type Course,
  dumpOf,
  type Figures,
  frozenIn,
  make,
  ran,
  restoreOf,
  seconds,
  succeeded,
} from './workload.ts'

/** Restores from a directory what was dumped into another one, since `begun`. */
async function restored(course: Course, source: string, target: string, begun: number): Promise<Figures> {
  await course.gone
  await ran(course, course.criu, restoreOf(target), target)
  return { total: seconds(begun), frozen: frozenIn(source) }
}

const tmpfs: Contender = {
  name: 'tmpfs',
  what: 'criu dump to tmpfs, criu restore from it; nothing is moved',
  missing: () => undefined,
  async run(course) {
    const images = make(course, 'images')
    const begun = performance.now()
    await ran(course, course.criu, dumpOf(course, images), images)
    return restored(course, images, images, begun)
  },
}

const pageServer: Contender = {
  name: 'page-server',
  what: 'criu dump --page-server, criu page-server to tmpfs, criu restore from it',
  missing: () => undefined,
  async run(course) {
    const [source, target] = [make(course, 'source'), make(course, 'target')]
    const port = await freePort()
    const listen = ['--address', '127.0.0.1', '--port', `${port}`, '--status-fd', '2']
    const server = course.start(course.criu, ['page-server', '-D', target, ...listen])
    const served = succeeded(server, 'criu page-server')
    served.catch(() => {})
    await Promise.race([served, new Promise((resolve) => server.stderr?.once('data', resolve))])
    const begun = performance.now()
    const to = ['--page-server', '--address', '127.0.0.1', '--port', `${port}`]
    await ran(course, course.criu, [...dumpOf(course, source), ...to], source)
    await served
    for (const name of readdirSync(source)) copyFileSync(join(source, name), join(target, name))
    return restored(course, source, target, begun)
  },
}

const tarSocat: Contender = {
  name: 'tar-socat',
  what: 'criu dump to tmpfs, tar | socat over TCP to another tmpfs, criu restore from it',
  missing: () => (has('socat') ? undefined : 'socat is not installed'),
  async run(course) {
    const [source, target] = [make(course, 'source'), make(course, 'target')]
    const port = await freePort()
    const begun = performance.now()
    await ran(course, course.criu, dumpOf(course, source), source)
    const listener = `TCP-LISTEN:${port},bind=127.0.0.1,reuseaddr`
    const taking = ran(course, 'socat', ['-u', listener, `EXEC:tar -x -C ${target}`])
    const sender = `TCP:127.0.0.1:${port},retry=50,interval=0.02`
    await ran(course, 'socat', ['-u', `EXEC:tar -c -C ${source} .`, sender])
    await taking
    return restored(course, source, target, begun)
  },
}

function has(program: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${program}`], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

async function freePort(): Promise<number> {
  const server = createServer()
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0))
    })
  })
}

/** In the order of the table; the first two are what ours is compared with. */
export function contenders(commands: Commands): Contender[] {
  const buffers = "the same through Node's own streams (FERRY_NO_SPLICE=1)"
  return [
    tmpfs,
    pageServer,
    tarSocat,
    ours('ferry', 'criu dump --stream, proxy and cache over TCP, criu restore --stream', commands),
    ours('ferry-unchecked', 'ferry with --no-checksum: pages are passed on by reference', {
      ...commands,
      proxy: ['--no-checksum'],
    }),
    ours('ferry-buffers', buffers, { ...commands, env: { FERRY_NO_SPLICE: '1' } }),
    ours('ferry-early', 'ferry with cache --release-early, and what both hold', { ...commands, releaseEarly: true }),
  ]
}
