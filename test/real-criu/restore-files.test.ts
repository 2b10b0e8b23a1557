/**
 * What CRIU cannot restore from a stream: where we start the restore it gets files, and where somebody else starts
 * `criu restore --stream` it is refused before the process is killed, or said.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { within } from '../expect.ts'
import { real } from '../support/criu.ts'
import { firewalled, hugePagesLoad, type Load } from '../support/loads.ts'
import { eventually, fixtures, shell, temporary } from '../support/run.ts'
import { staged } from '../support/stage.ts'

const test = suite('real-criu/restore-files')

const HUGE_PAGES = 2
const POOL = '/proc/sys/vm/nr_hugepages'
const poolBefore = existsSync(POOL) ? readFileSync(POOL, 'utf8') : undefined

/** Has the kernel keep huge pages for the load and its copy. Returns why it does not. */
function reserveHugePages(): string | undefined {
  if (poolBefore === undefined) return 'this kernel has no huge pages'
  try {
    writeFileSync(POOL, String(Number(poolBefore) + 2 * HUGE_PAGES))
  } catch (error) {
    return `no huge pages: ${(error as Error).message}`
  }
  return Number(readFileSync(POOL, 'utf8')) >= Number(poolBefore) + 2 * HUGE_PAGES ? undefined : 'no free huge pages'
}

/** No restore left files in memory behind. Other commands have directories of such names too, without images. */
function nothingLeft(): void {
  const left = ['/run', '/dev/shm']
    .flatMap((place) => readdirSync(place).map((name) => join(place, name)))
    .filter((path) => /\/criu-ferry\.\d+\./.test(path) && existsSync(join(path, 'images')))
  assert.equal(left, [])
}

function crosses(load: Load, criu: string, options: string[]): void {
  const behind = options.length === 0 ? [] : ['--', ...options]

  test(`${load.name}: through a pipe`, () =>
    staged(criu, load, async (stage) => {
      const there = `${stage.host.enter.join(' ')} restore-from-socket --from - ${behind.join(' ')}`
      const ran = await shell(`dump-to-stdout -t ${stage.load.pid} ${behind.join(' ')} | ${there}`)
      assert.is(ran.code, 0, ran.stderr)
      await stage.arrived()
      nothingLeft()
    }))

  test(`${load.name}: a hand-over by proxy and cache --restore`, () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache('--restore', ...behind)
      const proxy = await stage.proxy(port, '--until', 'running')
      const dumped = await stage.dump(...options).ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      await within(proxy.says(/handed over: the source is gone, it runs on the target/))
      await stage.arrived()
      await cache.says(/restored in/)
      nothingLeft()
    }))

  test(`${load.name}: a restore that fails leaves nothing, and the process that has its pid alone`, () =>
    staged(criu, load, async (stage) => {
      const image = join(stage.folder, 'app.img')
      const dumped = await shell(`dump-to-stdout -t ${stage.load.pid} -- -R ${options.join(' ')} > ${image}`)
      assert.is(dumped.code, 0, dumped.stderr)
      const restored = await shell(`restore-from-socket ${behind.join(' ')} < ${image}`)
      assert.is(restored.code, 5, restored.stderr)
      await stage.stayed()
      nothingLeft()
    }))

  test(`${load.name}: a criu restore --stream that is held is refused, and the process runs on`, () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache()
      const proxy = await stage.proxy(port, '--until', 'running')
      const script = ['--action-script', join(stage.target, 'post-restore')]
      const restoring = stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target, ...script, ...options])
      const dumped = await stage.dump(...options).ended
      assert.is.not(dumped.code, 0)
      assert.is.not((await restoring.ended).code, 0)
      await within(proxy.says(/criu restore --stream cannot restore /))
      assert.match(cache.stderr(), /criu restore --stream cannot restore [^\n]*\n[^\n]*hint: [^\n]*--restore/)
      await stage.stayed()
    }))
}

/** The pid of a container in user and other namespaces, with its root mounted at `path`/root. */
function startContainer(path: string): number {
  const [root, program] = [join(path, 'root'), join(path, 'root', 'container')]
  const line = [
    `mkdir -p ${root}/proc ${root}/log ${root}/dev`,
    `gcc -O1 -static -o ${program} ${join(fixtures, 'container.c')}`,
    `mknod -m 666 ${root}/dev/null c 1 3`,
    `chown -R 100000:100000 ${root}`,
    `mount --bind ${root} ${root}`,
    `${program} ${root}`,
  ]
  const { status, stdout, stderr } = spawnSync('sh', ['-ec', line.join('\n')], { encoding: 'utf8' })
  assert.is(status, 0, stderr)
  return Number(stdout)
}

async function container(): Promise<void> {
  const { path, remove } = temporary()
  chmodSync(path, 0o755)
  const log = join(path, 'root', 'log', 'load.log')
  const lines = (): number => (existsSync(log) ? readFileSync(log, 'utf8').split('\n').length : 0)
  const goesOn = async (): Promise<void> => {
    const before = lines()
    await eventually(() => lines() > before + 3 || undefined, 'the count of the container')
  }
  let pid = startContainer(path)
  try {
    await goesOn()
    const pidfile = join(path, 'pid')
    const options = `--root ${join(path, 'root')} --pidfile ${pidfile}`
    const dumped = await shell(`dump-to-stdout -t ${pid} > ${join(path, 'app.img')}`)
    assert.is(dumped.code, 0, dumped.stderr)
    await eventually(() => !existsSync(`/proc/${pid}`) || undefined, 'the end of the container')
    const restored = await shell(`restore-from-socket -- ${options} < ${join(path, 'app.img')}`)
    assert.is(restored.code, 0, restored.stderr)
    pid = Number(readFileSync(pidfile, 'utf8'))
    await goesOn()
    nothingLeft()
  } finally {
    spawnSync('kill', ['-9', String(pid)])
    await eventually(() => !existsSync(`/proc/${pid}`) || undefined, 'the end of the container')
    spawnSync('umount', ['-l', join(path, 'root')])
    remove()
  }
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else {
  const { path } = real
  const noPages = reserveHugePages()
  if (noPages === undefined) crosses(hugePagesLoad(HUGE_PAGES), path, [])
  else console.log(`skipped: private huge pages: ${noPages}`)
  const noRules = firewalled.missing()
  if (noRules === undefined) crosses(firewalled, path, ['--network-lock', 'nftables'])
  else console.log(`skipped: ${firewalled.name}: ${noRules}`)
  if (spawnSync('gcc', ['--version']).status === 0) test('a container in a user namespace, through a pipe', container)
  else console.log('skipped: a user namespace: no gcc on this machine')
  test.after(() => {
    if (poolBefore !== undefined) writeFileSync(POOL, poolBefore)
  })
}

test.run()
