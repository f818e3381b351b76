/** Chinese: what the tools of the practice world say. */

import type { AnnouncedFailure, Texts } from "./texts.ts";

const REQUESTS = {
  model: "个请求",
  telegram: "条 Telegram 消息",
  feishu: "条飞书消息",
};

/** For example “接下来 3 个使用密钥 2 的请求返回 529。” */
function failure({ kind, server, count, seconds, key, model, chat }: AnnouncedFailure): string {
  const when = seconds === undefined ? "接下来" : `${seconds} 秒内`;
  const number = count === Infinity ? "所有" : ` ${count} `;
  const unit = count === Infinity ? REQUESTS[server].slice(1).trimStart() : REQUESTS[server];
  const conditions = [
    key && `密钥 ${key}`,
    model && `模型 ${model}`,
    chat && `聊天 ${chat}`,
  ].filter(Boolean);
  const only = conditions.length > 0 ? `（仅限${conditions.join("、")}）` : "";
  return `${when}${number}${unit}${only}将出错：${kind}。`;
}

const RUN_ONE = "运行 npm start -- s04（到 s10 都可以）后送达。";

export const CHINESE: Texts = {
  comma: "、",
  refused: {
    busy: ({ user, pid }) =>
      `${user}${pid === "0" ? "" : `（进程 ${pid}）`}正在运行，并占用模拟环境的工作区。` +
      "先输入 quit 退出，或者用 npm run practice -- kill 终止。",
    nothingSent: () => "机器人还没有在这个聊天里发过消息。",
    notTaken: ({ status, address }) =>
      `程序没有受理这个事件：${address} ${status === "0" ? "没有响应" : `返回 ${status}`}。飞书会重发。`,
  },
  start: {
    help: `npm start                        选择章节
npm start -- s02                 运行第 2 节
npm start -- s02 --lang zh       指定语言（zh 中文，ja 日文，en 英文）
npm start -- s02 --fresh         重新复制一份工作区
npm start -- s03 --context 1000  把上下文窗口设为 1000 个 token
npm start -- s10 --serve         作为服务运行，不使用终端
npm start -- s04 --set 名称=值   修改一项设置；--set 可以写多次`,
    noLanguage: (given, known) => `没有“${given}”这种语言，可选：${known}。`,
    noSection: (given) => `没有“${given}”这一节，可选 s01 到 s10。`,
    notThere: (section, language, others, there) =>
      `${section} 还没有${language}版` +
      `${others.length > 0 ? `，已有的版本：${others.join("、")}` : ""}。` +
      `${there.length > 0 ? `可选：${there.join("、")}。` : ""}`,
    askLanguage: (names, first) => `语言（${names}）[${first}]：`,
    askSection: (first) => `章节 [${first}]：`,
    missing: (sections) => `还没有：${sections}`,
    offline: [
      "离线模拟环境：由模拟模型按固定规则回答，不调用真实的模型，不产生费用。",
      "要使用真实的模型，把 .env.zh.example 复制为 .env，填入密钥。",
    ],
    phone: "再开一个终端，扮演 alice：npm run phone -- telegram alice",
    killed: (user, command) =>
      `${user} 已被强制终止。受理过的消息还在磁盘上，运行 ${command} 会继续处理。`,
    freshWithKey: "（--fresh 只用于没有密钥的模拟环境，工作区没有改动。）",
    envInUtf16: ".env 的编码是 UTF-16，无法读取其中的设置。请改用 UTF-8 编码保存。",
    badSetting: (given, known) =>
      `--set 的格式是“名称=值”，不能是“${given}”。可用的名称：${known}。`,
  },
  phone: {
    help: `npm run phone -- telegram alice           alice 给机器人发消息
npm run phone -- telegram alice --group   alice 在群 family 里发消息，机器人只回复
                                          @practice_bot 和 /reply
npm run phone -- feishu bob               在飞书上，用法相同
    --lang zh                             指定语言

/photo [说明]  /album [说明]  /long（分成几条的长消息）  /reply <文字>  quit`,
    bot: "机器人",
    typing: "机器人正在输入……",
    ended: "模拟环境已结束。",
    waits: (user) =>
      user
        ? `（${user} 没有渠道，消息暂时保留，${RUN_ONE}）`
        : `（没有正在运行的章节，消息暂时保留，${RUN_ONE}）`,
  },
  rpc: {
    help: `npm run rpc -- status
npm run rpc -- send text="现在几点？" channel=telegram peerId=1001
npm run rpc -- bindings.set agentId=sage matchKey=peerId matchValue=telegram:1002 priority=5
npm run rpc -- bindings.list | sessions.list | agents.list

默认连接 npm start 启动的网关，用 --url=ws://host:port/?token=… 指定别的网关。
--timeout=60 把等待时间从 10 秒改为 60 秒，--lang=zh 指定语言。`,
    noGateway: (user) =>
      `${user ? `${user} 没有网关` : "没有正在运行的章节"}，运行 npm start -- s05 启动网关。`,
    badParameter: (word) => `“${word}”不是参数，格式是“名称=值”。`,
    unreachable: (host, why) => `无法连接网关 ${host}：${why}。`,
    closed: (host, code) => `网关 ${host} 关闭了连接（${code}）。`,
    gaveUp: (host, seconds) =>
      `网关 ${host} 已有 ${seconds} 秒没有数据，不再等待。网关可能仍在处理，用 --timeout=60 可以等得更久。`,
    typing: "正在输入……",
  },
  practice: {
    help: `npm run practice                         显示正在运行的章节和模拟环境
npm run practice -- fail 529             下一个请求出错；--times 3：接下来的三个
    --for 60s        一分钟内的所有请求
    --key 2          仅限第二个密钥；--model 模型名：仅限这个模型
    --retry-after 7  429 要求等待的秒数
npm run practice -- fail telegram 429    发给用户的下一条消息出错；也可以写 feishu；--chat alice
npm run practice -- fail off             取消所有故障；也可以写 fail telegram off
npm run practice -- drop                 下一个请求断开连接
npm run practice -- slow 5s              响应的每个事件之前等 5 秒；slow off：取消
npm run practice -- log                  显示最近的请求；--last 50：显示更多
npm run practice -- kill                 用 SIGKILL 终止正在运行的章节
npm run practice -- stop                 结束模拟环境和正在运行的章节
    --lang zh        指定语言`,
    kinds: `    （hang：一个字节也不返回；silent：流中途不再有数据；break 和 break-tool：流在文字或工具调用
    中间断开；empty：回复为空；empty-body：响应体为空）`,
    noCommand: (given) => `没有“${given}”这个命令。`,
    section: (user, pid) => `${user} 正在运行${pid ? `，进程 ${pid}` : ""}。`,
    noSection: "没有正在运行的章节，用 npm start 启动。",
    world: (pid, model) => `模拟环境是进程 ${pid}，模型地址 ${model}。`,
    byHand: "自己启动的章节，用下面的设置连接模拟模型：",
    more: "运行 npm run practice -- --help 查看可以调节什么。",
    killed: (user, pid) => `已用 SIGKILL 终止 ${user}，进程 ${pid}。`,
    ended: (user) => `模拟环境已结束${user ? `，${user} 也已结束` : ""}。`,
    noWorld: "模拟环境没有运行。",
    noMoreFailures: "已取消所有故障。",
    slow: (seconds) => (seconds > 0 ? `每个事件之前等 ${seconds} 秒。` : "不再等待。"),
    slowWhat: (given) => `无法识别 slow ${given}，写 slow 5s 或 slow off。`,
    noRequests: "还没有请求。",
    noFailure: (given, known) => `没有“${given}”这种故障，可选：${known}。`,
    oneFailure: (surplus) => `多出了“${surplus}”，一次只能指定一种故障。`,
    chatOption: "--chat 只用于 telegram 和 feishu。",
    modelOptions: "--key 和 --model 只用于模型。",
    failure,
  },
  log: {
    key: (number) => `密钥 ${number}`,
    messages: (count) => `${count} 条消息`,
    stopped: "客户端已中止",
    underWay: "进行中",
    cache: (cached, written, fresh) => `缓存读取 ${cached}，写入 ${written}，未缓存 ${fresh}`,
  },
  unknownOption: (given, help) => `没有 ${given} 这个选项。\n\n${help}`,
  noValue: (option, help) => `${option} 的写法不对：缺少值，或者多写了值。\n\n${help}`,
  wholeNumber: (option, given) => `${option} 要写正整数，不能是“${given}”。`,
  duration: (option, given) => `无法识别 ${option} ${given}，写成 ${option} 5s 这样。`,
  worldDidNotStart: (log) => `模拟环境启动失败，原因见 ${log}。`,
  worldHangs: (pid) => `模拟环境（进程 ${pid}）没有响应，用 kill -9 ${pid} 终止。`,
};
