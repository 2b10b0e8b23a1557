/** What a cache holds around a hand-over with the real CRIU, and several copies of one process. */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { askCache } from '../../lib/cache/admin.ts'
import { rejectsFault } from '../expect.ts'
import { real } from '../support/criu.ts'
import { type Host, startHost } from '../support/host.ts'
import { patternLoad } from '../support/loads.ts'
import { run } from '../support/run.ts'
import { command, copyOf, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/keep')
const load = patternLoad(8)

async function held({ target }: Stage): Promise<string[]> {
  const listed = await askCache(target, { ls: true })
  if (typeof listed !== 'object') throw new Error('no list')
  return listed.holdings.map(({ id, state }) => `${id} ${state}`)
}

/** Two more hosts. */
async function withHosts(body: (hosts: [Host, Host]) => Promise<void>): Promise<void> {
  const hosts: [Host, Host] = [await startHost(), await startHost()]
  try {
    await body(hosts)
  } finally {
    for (const host of hosts) await host.stop()
  }
}

function inside({ folder }: Stage, { enter }: Host, program: string, args: string[]) {
  const [nsenter = '', ...options] = enter
  return run(nsenter, [...options, program, ...args], { cwd: folder })
}

function keeping(criu: string): void {
  test('--keep: the cache restores one copy, and two more hosts take theirs from the same snapshot', () =>
    staged(criu, load, (stage) =>
      withHosts(async ([second, third]) => {
        const { cache, port } = await stage.cache('--keep', '--restore')
        const proxy = await stage.proxy(port, '--until', 'running', '--snapshot', 'web-1')
        const dumped = await stage.dump().ended
        assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
        await proxy.says(/handed over: the source is gone, it runs on the target/)
        await stage.arrived()
        await cache.says(/restored in/)
        assert.equal(await held(stage), ['web-1 retained'])

        const plain = await inside(stage, second, criu, ['restore', '--stream', '-d', '-D', stage.target])
        assert.is(plain.code, 0, plain.stderr + cache.stderr())
        const from = ['--from', `127.0.0.1:${port}`, '--snapshot', 'web-1', '-D', join(stage.folder, 'third')]
        const pulled = await inside(stage, third, command('restore-from-socket'), from)
        assert.is(pulled.code, 0, pulled.stderr + cache.stderr())

        const copies = [stage.host, second, third].map((host) => host.outerPid(stage.load.pid))
        assert.is(new Set(copies).size, 3)
        for (const copy of copies) await stage.load.whole(copy)
        assert.equal(cache.stderr().match(/restored in/g)?.length, 1, 'by itself the cache restores one')
        assert.equal(await held(stage), ['web-1 retained'])
        assert.is(await askCache(stage.target, { ls: false, rm: 'web-1' }), 'done')
        assert.equal(await held(stage), [])
        const late = await inside(stage, third, command('restore-from-socket'), from)
        assert.match(late.stderr, /snapshot web-1 was handed over, and runs/)
      }),
    ))

  test('--pin in a cache without --keep: that snapshot stays when its process runs, a second host gets a copy', () =>
    staged(criu, load, (stage) =>
      withHosts(async ([second]) => {
        const { cache, port } = await stage.cache()
        const proxy = await stage.proxy(port, '--until', 'running', '--snapshot', 'web-1')
        const dumping = stage.dump()
        await cache.says(/snapshot web-1 sealed/)
        assert.is(await askCache(stage.target, { ls: false, pin: 'web-1' }), 'done')
        const script = ['--action-script', join(stage.target, 'post-restore')]
        const restoring = stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target, ...script])
        assert.is((await dumping.ended).code, 0, proxy.stderr() + cache.stderr())
        assert.is((await restoring.ended).code, 0)
        await stage.arrived()
        assert.equal(await held(stage), ['web-1 retained'])
        const copy = await inside(stage, second, criu, ['restore', '--stream', '-d', '-D', stage.target])
        assert.is(copy.code, 0, copy.stderr + cache.stderr())
        await stage.load.whole(second.outerPid(stage.load.pid))
        await rejectsFault('REFUSED', askCache(stage.target, { ls: false, rm: 'web-1' }))
        assert.is(await askCache(stage.target, { ls: false, unpin: 'web-1' }), 'done')
        assert.is(await askCache(stage.target, { ls: false, rm: 'web-1' }), 'done')
        assert.equal(await held(stage), [])
      }),
    ))

  test('a list and a removal around a hand-over: what waits for its verdict stays, and goes when it runs', () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache()
      const proxy = await stage.proxy(port, '--until', 'running', '--snapshot', 'web-1')
      const dumping = stage.dump()
      await cache.says(/snapshot web-1 sealed/)
      assert.equal(await held(stage), ['web-1 undecided'])
      const { message } = await rejectsFault('REFUSED', askCache(stage.target, { ls: false, rm: 'web-1' }))
      assert.is(
        message,
        `the verdict of snapshot web-1 is not known: cache -D ${stage.target} --let-run web-1, or --drop web-1`,
      )
      const script = ['--action-script', join(stage.target, 'post-restore')]
      const restoring = stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target, ...script])
      assert.is((await dumping.ended).code, 0, proxy.stderr() + cache.stderr())
      assert.is((await restoring.ended).code, 0)
      await stage.arrived()
      await cache.says(/snapshot web-1 served/)
      assert.equal(await held(stage), [])
      await rejectsFault('MISSING', askCache(stage.target, { ls: false, rm: 'web-1' }))
    }))

  test('a source that is gone before anybody restores: its images are the process, and are not dropped', () =>
    staged(criu, load, async (stage) => {
      const { port } = await stage.cache()
      const proxy = await stage.proxy(port, '--snapshot', 'web-1')
      assert.is((await stage.dump().ended).code, 0)
      await proxy.says(/the cache keeps its images/)
      assert.equal(await held(stage), ['web-1 owning'])
      const { message } = await rejectsFault('REFUSED', askCache(stage.target, { ls: false, rm: 'web-1' }))
      assert.is(message, 'the source of snapshot web-1 is gone, and these images are its process: restore it')
      const restored = await stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target]).ended
      assert.is(restored.code, 0, restored.stderr)
      assert.is(await copyOf(stage), 'runs')
      assert.equal(await held(stage), ['web-1 taken'])
      assert.is(await askCache(stage.target, { ls: false, rm: 'web-1' }), 'done')
      assert.equal(await held(stage), [])
    }))
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else keeping(real.path)

test.run()
