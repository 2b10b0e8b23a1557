/**
 * The ways to move a process on one host, each from the start of criu dump until criu restore has let the tasks run:
 * ours, and what a user has without us. All of them keep images in memory only.
 */
import { copyFileSync, readdirSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { listen } from '../stream/listen.ts'
import { succeeded } from './children.ts'
import { has } from './machine.ts'
import { type Commands, ours } from './ours.ts'
import { type Contender, type Course, type Figures, frozenIn, seconds } from './workload.ts'

/** Restores from a directory what was dumped into another one, since `begun`. */
async function restored(course: Course, source: string, target: string, begun: number): Promise<Figures> {
  await course.gone
  await course.restore(target)
  return { total: seconds(begun), frozen: frozenIn(source) }
}

const tmpfs: Contender = {
  name: 'tmpfs',
  what: 'criu dump to tmpfs, criu restore from it; nothing is moved',
  async run(course) {
    const images = course.make('images')
    const begun = performance.now()
    await course.dump(images)
    return restored(course, images, images, begun)
  },
}

const pageServer: Contender = {
  name: 'page-server',
  what: 'criu dump --page-server, criu page-server to tmpfs, criu restore from it',
  async run(course) {
    const [source, target] = [course.make('source'), course.make('target')]
    const at = ['--address', '127.0.0.1', '--port', `${await freePort()}`]
    const server = course.start(course.criu, ['page-server', '-D', target, ...at, '--status-fd', '2'])
    const served = succeeded(server, 'criu page-server')
    served.catch(() => {})
    await Promise.race([served, new Promise((resolve) => server.stderr.once('data', resolve))])
    const begun = performance.now()
    await course.dump(source, '--page-server', ...at)
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
    const [source, target] = [course.make('source'), course.make('target')]
    const port = await freePort()
    const begun = performance.now()
    await course.dump(source)
    const listener = `TCP-LISTEN:${port},bind=127.0.0.1,reuseaddr`
    const taking = course.run('socat', ['-u', listener, `EXEC:tar -x -C ${target}`])
    const sender = `TCP:127.0.0.1:${port},retry=50,interval=0.02`
    await course.run('socat', ['-u', `EXEC:tar -c -C ${source} .`, sender])
    await taking
    return restored(course, source, target, begun)
  },
}

async function freePort(): Promise<number> {
  const server = createServer()
  const port = await listen(server, { host: '127.0.0.1', port: 0 })
  await new Promise((resolve) => server.close(resolve))
  return port
}

/** In the order of the table; the first two are what ours is compared with. */
export function contenders(commands: Commands): Contender[] {
  const variant = (name: string, more: Partial<Commands>, what: string): Contender =>
    ours(name, what, { ...commands, ...more })
  return [
    tmpfs,
    pageServer,
    tarSocat,
    variant('ferry', {}, 'criu dump --stream, proxy and cache over TCP, criu restore --stream'),
    variant(
      'ferry-unchecked',
      { proxy: ['--no-checksum'] },
      'ferry with --no-checksum: pages are passed on by reference',
    ),
    variant(
      'ferry-buffers',
      { env: { FERRY_NO_SPLICE: '1' } },
      "the same through Node's own streams (FERRY_NO_SPLICE=1)",
    ),
    variant('ferry-early', { releaseEarly: true }, 'ferry with cache --release-early, and what both hold'),
  ]
}
